"""GET /docs: the API with forms to try. Swagger UI's files come from a package, so no internet is
needed."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from service.http.routes.page import HEADERS, STATIC, WholeFile

# Of the package only the files are used: its own page has inline code.
SWAGGER = Path(str(files("fastapi_swagger"))) / "resources"
PARTS = ("swagger-ui-bundle.js", "swagger-ui.css")
# Swagger UI has icons as data: addresses in its style sheet, and makes markup of Markdown, which
# trusted types would forbid.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src"
    " 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)


@router.get("/docs")
def docs() -> WholeFile:
    """The page."""
    return WholeFile(STATIC / "docs.html", headers={**HEADERS, "Content-Security-Policy": POLICY})


@router.get("/openapi.json")
def document(request: Request) -> Response:
    """The OpenAPI document; in a thread."""
    return Response(request.app.document, media_type="application/json")


@router.get("/docs/{name}")
def part(name: str) -> WholeFile:
    """Swagger UI's script or style sheet."""
    if name not in PARTS:
        raise HTTPException(404)
    return WholeFile(SWAGGER / name, headers=HEADERS)

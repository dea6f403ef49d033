"""GET /: the page for people, and its files. It has no build step and loads nothing from
elsewhere."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

STATIC = Path(__file__).parent.parent / "static"
MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
# Labels and task names come from other people's files. The page escapes them; should one slip
# through, it cannot run as a script, send anything elsewhere, or become markup (trusted types
# forbid innerHTML).
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for"
    " 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a new version of the service comes with a new page
    "Accept-Ranges": "none",
}

router = APIRouter(include_in_schema=False)


class WholeFile(FileResponse):
    """A file, always whole: Range may be ignored (RFC 9110, 14.2), and Starlette refuses one that
    it cannot read in a form that is not ours."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [header for header in scope["headers"] if header[0] != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


@router.get("/")
def home() -> WholeFile:
    """The page."""
    return WholeFile(STATIC / "index.html", headers=HEADERS)


@router.get("/static/{name}")
def part(name: str) -> WholeFile:
    """A script, the style sheet or the icon."""
    path = STATIC / name
    if path.suffix not in MEDIA_TYPES or path not in STATIC.iterdir():
        raise HTTPException(404)
    return WholeFile(path, headers=HEADERS, media_type=MEDIA_TYPES[path.suffix])

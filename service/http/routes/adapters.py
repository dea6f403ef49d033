"""/adapters: upload, list, activate, roll back, download, delete."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic_core import to_json

from adapters.entry import Entry
from adapters.entry import Version as Stored
from adapters.errors import DamagedAdapter, StoreUnreachable, UnknownTask, UnknownVersion
from adapters.file import Summary, parse
from adapters.lookup import unknown
from adapters.pieces import joined
from service.audit import Write
from service.http import examples
from service.http.audited import audited
from service.http.bearer import sees
from service.http.body import parse_body, read_body
from service.http.downloads import Download, DownloadRoom, Place
from service.http.lists import PIECE_TASKS
from service.http.openapi import KEY_PROBLEMS, WRITE_PROBLEMS, answered, body_of, problems
from service.http.routes import READ, WRITE, Task, Version, lists_of, seen, service_of
from service.http.schemas import Activation, AdapterDetail, AdapterInfo, AdapterListed
from service.http.uploads import read_form
from service.http.views import detailed, info, listed
from service.service import Service

router = APIRouter(prefix="/adapters", tags=["adapters"])

_FORM = {
    "type": "object",
    "required": ["file"],
    "additionalProperties": False,
    "properties": {
        "file": {
            "type": "string",
            "format": "binary",
            "description": "As `curl -F file=@sst2.safetensors` sends it.",
        },
        "activate": {"type": "boolean", "default": True, "description": "Serve it from now on."},
    },
}


@router.post(
    "",
    summary="Upload an adapter",
    status_code=201,
    response_model=AdapterDetail,
    responses={
        201: answered("Stored", examples.ADAPTER, ("Location",)),
        200: {
            "model": AdapterDetail,
            **answered("That very file is there already", examples.ADAPTER, ("Location",)),
        },
        **problems(
            *(
                "MalformedBody",
                "CompressedBody",
                *WRITE_PROBLEMS,
                "RequestTooSlow",
                "BodyTooLarge",
                "InvalidAdapter",
                "BackboneMismatch",
                "InvalidRequest",
            ),
            *("QueueFull", "Stopping"),
        ),
    },
    openapi_extra={
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}
    },
    dependencies=WRITE,
)
async def upload(request: Request, response: Response) -> AdapterDetail:
    """Store an adapter file after checking it: its form, its backbone, and its probe replayed on
    this server."""
    service = service_of(request)
    with request.app.state.uploads.upload(request.receive) as receive:
        pieces, activate = await read_form(Request(request.scope, receive))
        adapter = await asyncio.to_thread(lambda: parse(joined(pieces)))
        if not sees(request, adapter.spec.task):
            raise unknown(adapter.spec.task, ())  # the answer names those that the key sees
        await service.replay_probe(adapter)

        def put(write: Write) -> tuple[Stored, bool]:
            write.about(adapter.digest)
            write.activated = activate
            version, new = service.store.put(adapter, activate=activate)
            if not new:
                write.result = "unchanged"
            return version, new

        version, new = await audited(request, service, "upload", adapter.spec.task, put)
    response.status_code = 201 if new else 200
    prefix = f"{request.app.state.root_path}/adapters/{adapter.spec.task}"
    response.headers["Location"] = f"{prefix}/versions/{version.short}/file"
    try:
        return await service.write(lambda: _detail(service, adapter.spec.task))
    except (UnknownTask, UnknownVersion):
        # Another client has just deleted it: it was stored all the same.
        summaries = {version.digest: Summary(adapter.spec, adapter.parameters)}
        return detailed(
            service,
            Entry(
                adapter.spec.task,
                (version,),
                version.digest if activate else None,
                summaries=summaries,
            ),
        )


@router.get(
    "",
    summary="List the adapters",
    response_model=list[AdapterListed] | list[AdapterInfo],
    responses={
        200: answered("The tasks, by name", examples.ADAPTERS, ("X-Total-Count",)),
        **problems(*KEY_PROBLEMS, "InvalidRequest"),
    },
    dependencies=READ,
)
async def list_adapters(
    request: Request,
    search: Annotated[
        str, Query(max_length=64, description="Only tasks with this in their name.")
    ] = "",
    offset: Annotated[int, Query(ge=0, description="How many to pass over, by name.")] = 0,
    limit: Annotated[
        int | None, Query(ge=1, le=1000, description="How many to answer; by default all.")
    ] = None,
    details: Annotated[
        bool, Query(description="With dev scores, requests since the start and their latency.")
    ] = False,
) -> Response:
    """Every task with its active version, by name; `X-Total-Count` says how many fit the search."""
    service, lists = service_of(request), lists_of(request)
    word = search.strip().lower()
    entries = await lists.run(
        request,
        len(service.store),
        lambda: [entry for entry in seen(request) if word in entry.task],
    )
    shown = entries[offset : None if limit is None else offset + limit]
    parts = [shown[start : start + PIECE_TASKS] for start in range(0, len(shown), PIECE_TASKS)]
    pieces = [(len(part), partial(_listed, service, part, details)) for part in parts]
    found = await lists.pieces(request, pieces) if pieces else []
    return Response(
        b"[%s]" % b",".join(filter(None, found)),
        headers={"X-Total-Count": str(len(entries))},
        media_type="application/json",
    )


def _listed(service: Service, entries: list[Entry], details: bool) -> bytes:
    """Some tasks of a list as JSON, with commas between them."""
    found: list[AdapterInfo] = []
    for entry in entries:
        # One that was deleted meanwhile, is damaged on disk, or is in a bucket that does not answer
        # is left out; a request for it says why.
        with contextlib.suppress(UnknownTask, UnknownVersion, DamagedAdapter, StoreUnreachable):
            found.append(listed(service, entry) if details else info(service, entry))
    return to_json(found, inf_nan_mode="null")[1:-1]


@router.get(
    "/{task}",
    summary="Show a task",
    response_model=AdapterDetail,
    responses={
        200: answered("The task", examples.ADAPTER),
        **problems(*KEY_PROBLEMS, "UnknownTask", "DamagedAdapter"),
    },
    dependencies=READ,
)
def show(request: Request, task: Task) -> AdapterDetail:
    """One task: its spec and all its versions."""
    return _detail(service_of(request), task)


async def _place(request: Request) -> AsyncIterator[Place]:
    """A place for one download, until its answer is sent."""
    room: DownloadRoom = request.app.state.downloads
    async with room.place() as place:
        yield place


@router.get(
    "/{task}/versions/{version}/file",
    summary="Download a version",
    response_class=Response,
    responses={
        200: (
            answered("The file", None, ("ETag", "Content-Disposition"))
            | {"content": {"application/octet-stream": {}}}
        ),
        **problems(
            *KEY_PROBLEMS, "UnknownTask", "UnknownVersion", "AmbiguousVersion", "DamagedAdapter"
        ),
    },
    dependencies=READ,
)
async def download(
    request: Request, task: Task, version: Version, place: Annotated[Place, Depends(_place)]
) -> Response:
    """The adapter file itself, to the byte."""
    service = service_of(request)
    found = service.store.find(task, version)
    # What is open can be read to its end: a deletion meanwhile does not cut it short.
    await place.open(lambda: service.store.open(task, found))
    return Download(
        place,
        found.bytes,
        {
            "ETag": f'"{found.digest}"',
            "Content-Disposition": f'attachment; filename="{task}-{found.short}.safetensors"',
        },
    )


@router.post(
    "/{task}/activate",
    summary="Roll forward or back",
    response_model=AdapterDetail,
    responses={
        200: answered("The task as it is now", examples.ADAPTER),
        **problems(
            *(
                "MalformedBody",
                "CompressedBody",
                *WRITE_PROBLEMS,
                "UnknownTask",
                "UnknownVersion",
                "AmbiguousVersion",
                "BodyTooLarge",
            ),
            *("InvalidRequest", "DamagedAdapter"),
        ),
    },
    openapi_extra={"requestBody": body_of(Activation, examples.ACTIVATION)},
    dependencies=WRITE,
)
async def activate(request: Request, task: Task) -> AdapterDetail:
    """Let a version get all requests from now on. Rolling back is activating an older one,
    promoting is activating the canary; a split of the traffic ends."""
    service = service_of(request)
    body = parse_body(
        await read_body(request), Activation, "an activation", "an object with 'version'"
    )

    def activated(write: Write) -> None:
        write.version = body.version[:64]  # as asked for, if there is none
        write.about(service.store.activate(task, body.version).digest)

    await audited(request, service, "activate", task, activated)
    return await asyncio.to_thread(_detail, service, task)


@router.delete(
    "/{task}",
    summary="Delete a task",
    status_code=204,
    responses={204: answered("Deleted"), **problems("UnknownTask", *WRITE_PROBLEMS)},
    dependencies=WRITE,
)
async def delete_task(request: Request, task: Task) -> None:
    """Delete a task with all its versions; requests under way are answered."""
    service = service_of(request)

    def deleted(write: Write) -> None:
        with contextlib.suppress(UnknownTask):  # the deletion says what is wrong
            write.about(service.store.entry(task).active)
        service.store.delete_task(task)

    await audited(request, service, "delete task", task, deleted)
    service.metrics.forget(task)


@router.delete(
    "/{task}/versions/{version}",
    summary="Delete a version",
    status_code=204,
    responses={
        204: answered("Deleted"),
        **problems(
            *("UnknownTask", "UnknownVersion", "AmbiguousVersion", "VersionIsActive"),
            *("VersionInTraffic", *WRITE_PROBLEMS),
        ),
    },
    dependencies=WRITE,
)
async def delete_version(request: Request, task: Task, version: Version) -> None:
    """Delete one version that is neither active nor a canary nor a shadow."""
    service = service_of(request)

    def deleted(write: Write) -> None:
        write.version = version[:64]  # as asked for, if there is none
        write.about(service.store.delete_version(task, version).digest)

    await audited(request, service, "delete version", task, deleted)
    if task not in service.store:  # that was its last one
        service.metrics.forget(task)


def _detail(service: Service, task: str) -> AdapterDetail:
    return detailed(service, service.store.entry(task))

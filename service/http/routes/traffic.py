"""/adapters/{task}/traffic: a version that answers a part of a task's requests, or runs beside."""

from __future__ import annotations

from fastapi import APIRouter, Request

from adapters.lookup import check_split
from service.audit import Write
from service.http import examples
from service.http.audited import audited
from service.http.body import parse_body, read_body
from service.http.openapi import (
    KEY_PROBLEMS,
    VERSION_PROBLEMS,
    WRITE_PROBLEMS,
    answered,
    body_of,
    problems,
)
from service.http.routes import READ, WRITE, Task, service_of
from service.http.traffic import Traffic, TrafficShown, split_of, traffic_of
from service.traffic.checks import check_versions

router = APIRouter(prefix="/adapters/{task}/traffic", tags=["adapters"])


@router.get(
    "",
    summary="Show how the traffic is divided",
    response_model=TrafficShown,
    responses={
        200: answered("The traffic", examples.TRAFFIC),
        **problems(*KEY_PROBLEMS, "UnknownTask", "DamagedAdapter"),
    },
    dependencies=READ,
)
async def show_traffic(request: Request, task: Task) -> TrafficShown:
    """Which version gets which part of a task's requests, and what each was seen to do."""
    return traffic_of(service_of(request), task)


@router.put(
    "",
    summary="Divide the traffic",
    response_model=TrafficShown,
    responses={
        200: answered("The traffic as it is now", examples.TRAFFIC),
        **problems(
            *("MalformedBody", "CompressedBody", *WRITE_PROBLEMS, *VERSION_PROBLEMS),
            *("ActiveHasChanged", "BodyTooLarge", "InvalidRequest", "DamagedAdapter"),
            "BackboneMismatch",
        ),
    },
    openapi_extra={"requestBody": body_of(Traffic, examples.TRAFFIC_ASKED)},
    dependencies=WRITE,
)
async def divide_traffic(request: Request, task: Task) -> TrafficShown:
    """Let a canary answer a part of a task's requests from now on, or a shadow run beside. With
    `active` alone, the active version gets all of them. What was seen is counted anew."""
    service = service_of(request)
    body = await read_body(request)
    asked = parse_body(body, Traffic, "a split of the traffic", "an object with 'active'")

    def divided(write: Write) -> None:
        store = service.store
        split = split_of(store, task, asked)
        write.about(split.active)
        write.traffic = {
            role: {"digest": part.digest, "percent": part.percent}
            for role, part in (("canary", split.canary), ("shadow", split.shadow))
            if part is not None
        }
        check_split(store.entry(task), split)
        check_versions(store, task, split)
        store.set_split(task, split if split.roles() else None)

    await audited(request, service, "divide traffic", task, divided)
    return traffic_of(service, task)


@router.delete(
    "",
    summary="End the split",
    status_code=204,
    responses={204: answered("Ended"), **problems("UnknownTask", *WRITE_PROBLEMS)},
    dependencies=WRITE,
)
async def end_split(request: Request, task: Task) -> None:
    """Let the active version get all requests of a task from now on."""
    service = service_of(request)

    def ended(write: Write) -> None:
        write.about(service.store.set_split(task, None).active)

    await audited(request, service, "end split", task, ended)

"""Answers that go through all tasks: whole, and few of them made at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.requests import Request

from adapters.backbone import Backbone
from benchmarks.stores import fill
from service.http.lists import PIECE_TASKS, THREADS, Lists
from service.http.views import date_of
from tests.service.conftest import Server, running, until

TASKS = 2 * PIECE_TASKS + 5


@pytest.fixture(scope="module")
def many(
    bert: Backbone, bert_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("many") / "store"
    fill(store, bert, TASKS)
    with running(store, backbone=bert_folder) as server:
        yield server


@pytest.mark.parametrize("details", [False, True])
@pytest.mark.parametrize(
    ("offset", "limit"),
    [(0, None), (0, 1000), (PIECE_TASKS - 1, 2), (3, PIECE_TASKS), (TASKS - 1, 9), (TASKS, None)],
)
def test_a_list_is_whole(many: Server, offset: int, limit: int | None, details: bool) -> None:
    """A list of any part of many tasks has each of them once, by name, and says how many there
    are."""
    expected = [f"task-{i:05d}" for i in range(TASKS)][offset:][:limit]
    asked = {"offset": offset, "details": details} | ({} if limit is None else {"limit": limit})
    with many.client() as client:
        answer = client.get("/adapters", params=asked)
    assert answer.headers["X-Total-Count"] == str(TASKS)
    found = answer.json()
    assert [each["task"] for each in found] == expected
    assert all(("dev_scores" in each) is details for each in found)


def test_few_lists_are_made_at_once() -> None:
    """Of many lists that are asked for at once, a few are worked on. Those whose clients leave are
    not begun."""
    left, made = asyncio.Event(), []
    most = going = 0
    lock, go_on = threading.Lock(), threading.Event()

    def job() -> None:
        nonlocal most, going
        with lock:
            going += 1
            most = max(most, going)
        go_on.wait(60)
        with lock:
            going -= 1
            made.append(1)

    async def stays() -> dict[str, str]:
        await asyncio.Event().wait()
        return {}

    async def leaves() -> dict[str, str]:
        await left.wait()
        return {"type": "http.disconnect"}

    async def scenario() -> None:
        lists = Lists()
        staying, leaving = Request({"type": "http"}, stays), Request({"type": "http"}, leaves)
        asked = [asyncio.create_task(lists.run(staying, 9, job)) for _ in range(8)]
        given_up = [asyncio.create_task(lists.run(leaving, 9, job)) for _ in range(8)]
        await asyncio.to_thread(until, lambda: going == THREADS)
        left.set()
        ended = await asyncio.gather(*given_up, return_exceptions=True)
        assert {type(error).__name__ for error in ended} == {"ClientClosed"}
        go_on.set()
        await asyncio.gather(*asked)

    asyncio.run(scenario())
    assert (most, len(made)) == (THREADS, 8)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "1970-01-01T00:00:00+00:00"),
        (-1e18, "0001-01-01T00:00:00+00:00"),
        (1e18, "9999-12-31"),
    ],
)
def test_dates_that_no_calendar_has(seconds: float, shown: str) -> None:
    """A file's or a log's time that is out of all bounds is shown as the first or the last date:
    it breaks no list."""
    assert date_of(seconds).startswith(shown)

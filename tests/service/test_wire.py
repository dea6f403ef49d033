"""The wire between two processes: messages arrive whole however their bytes are cut, and what is no
message ends the wire."""

from __future__ import annotations

import asyncio
import re
import socket
from dataclasses import is_dataclass, replace
from itertools import accumulate, count, pairwise
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import msgpack
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from adapters.text import Tokens
from service.batcher import BatchReport, Outcome
from service.http.connections import ConnectionSettings
from service.predictor import Admitted, Signature
from service.refusals import Closed, QueueFull, Referred
from service.workers import wire
from service.workers.messages import (
    AppReceive,
    AppReturned,
    AppSend,
    BrokenWire,
    Counted,
    Greeting,
    Message,
    Ping,
    Ready,
    Refused,
    RelayRequest,
    RowGroup,
    RunResult,
    Sent,
    Tokenized,
    fields_of,
    packed,
)
from service.workers.relay import AHEAD, Relay, RelayedRequest
from service.workers.wire import MessageReader, Wire, read_greeting

SIGNATURE = Signature("sst2", ("no", "yes"), "regression", True, 64, None)
GREETING = Greeting(
    tokenizer="x" * 300_000,
    mask_token="[MASK]",
    api_key=None,
    dtype="float32",
    max_inputs=256,
    max_body_bytes=1 << 20,
    max_wait_seconds=1.5,
    drain_seconds=30,
    log_level="info",
    log_format="json",
    connections=ConnectionSettings(header_seconds=0.5, max_connections=7),
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
OBJECT = st.dictionaries(st.text(max_size=4), VALUES, max_size=4)
# JSON and msgpack have no such thing as equal NaNs, and msgpack's integers have 64 bits.
FIELDS: dict[object, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False),
    dict[str, Any]: OBJECT,
}


def drawn(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    if kind in FIELDS:
        return FIELDS[kind]
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return st.builds(kind, **{name: drawn(hint) for name, hint in hints.items()})
    if get_origin(kind) is list:
        return st.lists(drawn(get_args(kind)[0]), max_size=3)
    if get_origin(kind) is UnionType:
        return st.one_of(*map(drawn, get_args(kind)))
    return st.from_type(kind)


MESSAGE = drawn(Message)


def on_the_wire(message: Message) -> bytes:
    return bytes(msgpack.packb(packed(message), default=fields_of))


@given(st.lists(MESSAGE, max_size=6), st.lists(st.integers(0, 2000)))
def test_messages_cut_anywhere(messages: list[Message], cuts: list[int]) -> None:
    """Every message is read as it was sent, as soon as its last byte has come, wherever the bytes
    are cut."""
    ends = list(accumulate(len(on_the_wire(message)) for message in messages))
    data = b"".join(map(on_the_wire, messages))
    bounds = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    reader, found = MessageReader(), list[Message]()
    for start, end in pairwise(bounds):
        found += reader.read(data[start:end])
        assert len(found) == sum(last <= end for last in ends)
    assert found == messages


@given(st.binary(min_size=1))
def test_garbage(data: bytes) -> None:
    """Bytes that nobody packed are the beginning of a message, or are refused."""
    try:
        messages = MessageReader().read(data)
    except BrokenWire:
        return
    assert messages == []


COUNTED = {"tasks": ["sst2"], "status": 200, "seconds": 0.5}
NO_MESSAGES: dict[str, tuple[object, str]] = {
    "a number": (1, "type int; expected a kind and its fields"),
    "a string": ("Run", "type str; expected a kind"),
    "nothing": ([], "type list; expected a kind"),
    "a number for a kind": ([1, {}], "type list; expected a kind"),
    "too many parts": (["Counted", COUNTED, 1], "type list; expected a kind"),
    "a kind that is none": (
        ["Count", COUNTED],
        "message 'Count'; expected Greeting",
    ),
    "no object": (["Counted", [["sst2"], 200, 0.5]], "a message 'Counted' on the wire: "),
    "a field too few": (["Counted", {"tasks": [], "status": 2}], "seconds is missing; "),
    "another type": (["Counted", COUNTED | {"status": "ok"}], "status is 'ok'; expected"),
    "another type within": (["Counted", COUNTED | {"tasks": [1]}], "tasks.0 is 1; expected"),
    "a refusal that is none": (
        ["Refused", {"call": 1, "refusal": "SystemExit", "data": {}}],
        "refusal is 'SystemExit'; expected",
    ),
}


@pytest.mark.parametrize("what", NO_MESSAGES)
def test_what_is_no_message(what: str) -> None:
    """A value that is no message is refused with a sentence that says why."""
    value, sentence = NO_MESSAGES[what]
    with pytest.raises(BrokenWire, match=re.escape(sentence)):
        MessageReader().read(msgpack.packb(value))


def test_a_message_that_is_too_long() -> None:
    """A message that does not end within the limit is refused before all of it has come."""
    reader = MessageReader(max_bytes=1000)
    data = msgpack.packb(["Run", b"x" * 2000])
    for start in range(0, 1000, 100):
        assert reader.read(data[start : start + 100]) == []
    with pytest.raises(BrokenWire):
        reader.read(data[1000:1100])


def test_rows() -> None:
    """Rows arrive with their tokens, types and mask, for the adapter that they were made for."""
    rows = [
        Tokens([101, 2**32 - 1, 0], [0, 1, 255], 3),
        Tokens([7], [0], 9, exact=False, mask=0),
    ]
    adapter = Admitted(SIGNATURE, "d" * 64, "beef")
    group = RowGroup.of(adapter, "beef", rows)
    assert (group.task, group.version, group.digest) == ("sst2", "beef", "d" * 64)
    found = [(row.ids, row.types, row.mask) for row in group.tokens()]
    assert found == [(row.ids, row.types, row.mask) for row in rows]
    with pytest.raises(ValueError, match="bytes"):
        replace(group, ids=[b"x" * 5, b""]).tokens()
    with pytest.raises(ValueError, match="zip"):
        replace(group, types=[b""]).tokens()


def test_outcomes() -> None:
    """Outcomes arrive in order, those of one batch with one report, without the other rows'
    waits."""
    first = BatchReport(3, 30, 2, 1.0, 0.5, [0.1, 0.2, 0.3])
    second = BatchReport(1, 10, 1, 2.0, 0.25, [0.4])
    rows = [Outcome([1.0], 0.1, first), Outcome([2.0, 3.0], 0.4, second), Outcome([], 0.3, first)]
    (found,) = MessageReader().read(on_the_wire(RunResult.of(5, rows)))
    assert isinstance(found, RunResult)
    reports = {id(first): replace(first, waits=[]), id(second): replace(second, waits=[])}
    assert found.outcomes() == [
        Outcome(row.value, row.queued, reports[id(row.batch)]) for row in rows
    ]


@pytest.mark.parametrize("error", [QueueFull(), QueueFull(7), Closed(), Referred()])
def test_refusals(error: QueueFull | Closed | Referred) -> None:
    """A refusal arrives as it was, with what it carries."""
    (found,) = MessageReader().read(on_the_wire(Refused.of(3, error)))
    assert isinstance(found, Refused)
    assert (type(found.error()), str(found.error())) == (type(error), str(error))
    assert vars(found.error()) == vars(error)


def test_a_greeting() -> None:
    """A front end waits for its greeting, however long that is. An end before it, or another
    message, is told from one."""

    async def greet(ours: socket.socket, theirs: socket.socket) -> Greeting:
        engine_end = Wire()
        await engine_end.attach(ours, {}, lambda: None)
        engine_end.send(GREETING)
        return await asyncio.to_thread(read_greeting, theirs)

    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert asyncio.run(greet(ours, theirs)) == GREETING
    for first, sentence in (
        (b"", "the wire ended"),
        (on_the_wire(Ping()), "is Ping; expected Greeting"),
    ):
        ours, theirs = socket.socketpair()
        with theirs:
            with ours:
                ours.sendall(first)
            with pytest.raises(BrokenWire, match=sentence):
                read_greeting(theirs)


def test_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one end sends, the other end's handler gets. A message that is too long is refused
    before it is sent."""
    monkeypatch.setattr(wire, "MAX_BYTES", 1000)
    received: list[Message] = []

    async def talk() -> None:
        arrived = asyncio.Event()

        def handle(message: Counted) -> None:
            received.append(message)
            arrived.set()

        first, second = Wire(), Wire()
        ours, theirs = socket.socketpair()
        await first.attach(ours, {}, lambda: None)
        await second.attach(theirs, {Counted: handle}, lambda: None)
        with pytest.raises(BrokenWire, match="AppSend has 2"):
            first.send(AppSend(1, {"body": b"x" * 2000}))
        first.send(Counted(["sst2"], 200, 0.25))
        await arrived.wait()

    asyncio.run(talk())
    assert received == [Counted(["sst2"], 200, 0.25)]


@pytest.mark.parametrize("last", [b"", b"\xc1", on_the_wire(Tokenized(1.0))])
def test_an_end(last: bytes) -> None:
    """Where the other process has ended, or sends what is not for this one, this one is told once;
    what it sends from then on is dropped."""
    lost: list[str] = []

    async def listen() -> None:
        ended = asyncio.Event()

        def end() -> None:
            lost.append("lost")
            ended.set()

        ours, theirs = socket.socketpair()
        here = Wire()
        await here.attach(ours, {Ping: lambda _: None}, end)
        assert here.open
        with theirs:
            theirs.sendall(last)
            if last:
                await ended.wait()
        await ended.wait()
        assert not here.open
        here.send(Ready())

    asyncio.run(listen())
    assert lost == ["lost"]


def test_a_client_that_reads_slowly() -> None:
    """The app waits while a client takes nothing of its answer; a client that reads gets all of
    it."""
    taken: list[bytes] = []
    given: list[int] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        for piece in range(100):
            await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
            given.append(piece)

    async def talk() -> None:
        structlog.contextvars.bind_contextvars(request_id="id")
        ours, theirs = socket.socketpair()
        engine_end, front_end = Wire(), Wire()
        relay = Relay(front_end, count())
        relayed = RelayedRequest(engine_end, 0)
        answering: set[asyncio.Task[None]] = set()
        full, reads = asyncio.Event(), asyncio.Event()

        def begin(message: RelayRequest) -> None:
            answer = relayed.answer(app, message.request_id, message.scope)
            answering.add(asyncio.create_task(answer))

        async def receive() -> Any:
            raise AssertionError

        async def send(message: Any) -> None:
            taken.append(message["body"])
            full.set()
            await reads.wait()

        handlers = dict.fromkeys((AppReceive, AppReturned, AppSend), relay.next)
        await engine_end.attach(
            ours, {RelayRequest: begin, Sent: lambda _: relayed.sent()}, lambda: None
        )
        await front_end.attach(theirs, handlers, lambda: None)
        client = asyncio.create_task(relay({"type": "http"}, receive, send))
        await full.wait()
        for _ in range(1000):  # turns of the loop, in which the app could have gone on
            await asyncio.sleep(0)
        assert len(given) == AHEAD
        reads.set()
        await client

    asyncio.run(talk())
    assert taken == [b"x" * 1000] * 100

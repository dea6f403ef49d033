"""The wire between two processes: messages arrive whole however their bytes are cut, and what is no
message ends the wire."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from dataclasses import is_dataclass, replace
from itertools import accumulate, count, pairwise
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from adapters.text import Tokens
from service.batcher import BatchReport, Outcome
from service.http.connections import ConnectionSettings
from service.predictor import Admitted, Signature
from service.refusals import Closed, OutcomeUnknown, QueueFull, Referred
from service.workers import engine_end, wire
from service.workers.engine_end import MAX_PINGS_MISSED, EngineEnd
from service.workers.messages import (
    AppReceive,
    AppReturned,
    AppSend,
    BrokenWire,
    Counted,
    Greeting,
    Message,
    Ping,
    Pong,
    Ready,
    Refused,
    RelayRequest,
    RowGroup,
    Run,
    RunResult,
    Sent,
    Tokenized,
    packed,
)
from service.workers.relay import AHEAD, PIECE, Relay, RelayedRequest, UnreadAnswers
from service.workers.wire import LENGTH_BYTES, MessageReader, Wire, read_greeting

SIGNATURE = Signature("sst2", ("no", "yes"), "regression", True, 64, None)
GREETING = Greeting(
    tokenizer="x" * 300_000,
    mask_token="[MASK]",
    api_key=None,
    keys_file="/keys/keys.toml",
    dtype="float32",
    max_inputs=256,
    auto_truncate=False,
    hosts=["adamix.example"],
    root_path="/ml",
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
# NaNs do not equal themselves, and msgpack's integers have 64 bits.
FIELDS: dict[object, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False),
    dict[str, Any]: OBJECT,
}


def drawn(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    if kind in FIELDS:
        return FIELDS[kind]
    if is_dataclass(kind) or (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        hints = get_type_hints(kind)
        return st.builds(kind, **{name: drawn(hint) for name, hint in hints.items()})
    if get_origin(kind) is list:
        return st.lists(drawn(get_args(kind)[0]), max_size=3)
    if get_origin(kind) is tuple:  # also of floats
        first, *rest = get_args(kind)
        if rest == [...]:
            return st.lists(drawn(first), max_size=3).map(tuple)
        return st.tuples(*map(drawn, (first, *rest)))
    if get_origin(kind) is UnionType:
        return st.one_of(*map(drawn, get_args(kind)))
    return st.from_type(kind)


MESSAGE = drawn(Message)


def framed(data: bytes) -> bytes:
    """With its length in front."""
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


def on_the_wire(message: Message) -> bytes:
    return framed(packed(message))


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
    """Bytes that nobody packed are the beginning of a message, or are refused; whole ones are
    refused."""
    try:
        messages = MessageReader().read(data)
    except BrokenWire:
        return
    assert messages == []
    with pytest.raises(BrokenWire):
        MessageReader().read(framed(data))


NO_MESSAGES: dict[str, tuple[object, str]] = {
    "a number": (1, "Expected `array`, got `int`"),
    "nothing": ([], "Expected `array` of at least length 1"),
    "a number for a kind": ([1, {}], "Expected `str`"),
    "a kind that is none": (["Count", ["sst2"], 200, 0.5], "Invalid value 'Count'"),
    "a field too few": (["Counted", ["sst2"], 200], "at least length 4, got 3"),
    "a field too many": (
        ["Counted", ["sst2"], 200, 0.5, 1],
        "Expected `array` of at most",
    ),
    "another type": (["Counted", ["sst2"], "ok", 0.5], "Expected `int`, got `str` - at `$[2]`"),
    "another type within": (["Counted", [1], 200, 0.5], "got `int` - at `$[1][0]`"),
    "a refusal that is none": (["Refused", 1, "SystemExit", {}], "Invalid enum value 'SystemExit'"),
}


@pytest.mark.parametrize("what", NO_MESSAGES)
def test_what_is_no_message(what: str) -> None:
    """A value that is no message is refused with a sentence that says why."""
    value, sentence = NO_MESSAGES[what]
    with pytest.raises(BrokenWire, match=re.escape(sentence)):
        MessageReader().read(framed(msgspec.msgpack.encode(value)))


def test_a_message_that_is_too_long() -> None:
    """A message that does not end within the limit is refused before all of it has come."""
    reader = MessageReader(max_bytes=1000)
    data = on_the_wire(AppSend(1, {"body": b"x" * 2000}))
    with pytest.raises(BrokenWire, match=r"a message of 20\d\d bytes; expected at most 1000"):
        reader.read(data[:LENGTH_BYTES])


def test_rows() -> None:
    """Rows arrive with their tokens, types and mask, for the adapter that they were made for."""
    rows = [
        Tokens([101, 2**32 - 1, 0], [0, 1, 255], 3),
        Tokens([7], [0], 9, exact=False, mask=0),
    ]
    adapter = Admitted(SIGNATURE, "d" * 64, "beef")
    (found,) = MessageReader().read(on_the_wire(Run(5, [RowGroup.of(adapter, "beef", rows)])))
    assert isinstance(found, Run)
    (group,) = found.groups
    assert (group.task, group.version, group.digest) == ("sst2", "beef", "d" * 64)
    arrived = [(row.ids, row.types, row.mask) for row in group.tokens()]
    assert arrived == [(row.ids, row.types, row.mask) for row in rows]


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
        here = Wire()
        await here.attach(ours, {}, lambda: None)
        here.send(GREETING)
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


@pytest.mark.parametrize("last", [b"", framed(b"\xc1"), on_the_wire(Tokenized(1.0))])
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


def test_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A front end that answers its pings is left alone, though this process stood still for longer
    than all of them take; one that does not answer any more is found."""
    monkeypatch.setattr(engine_end, "PING_SECONDS", 0.01)

    async def talk() -> None:
        ours, theirs = socket.socketpair()
        here = EngineEnd(None, None, UnreadAnswers(0))  # type: ignore[arg-type]  # no request comes
        front_end = Wire()
        answered = 0

        def pong(_: Ping) -> None:
            nonlocal answered
            answered += 1
            if answered <= 5 * MAX_PINGS_MISSED:
                front_end.send(Pong())
            if answered == MAX_PINGS_MISSED:
                time.sleep(2 * MAX_PINGS_MISSED * 0.01)

        handlers: dict[type[Message], Any] = {Ping: pong, Greeting: lambda _: None}
        await front_end.attach(theirs, handlers, lambda: None)
        await here.serve(ours, GREETING, lambda: None)
        front_end.send(Ready())
        await here.unanswered()
        assert answered == 6 * MAX_PINGS_MISSED

    asyncio.run(talk())


@pytest.mark.parametrize("begun", [True, False])
def test_an_engine_process_that_ends_during_an_answer(begun: bool) -> None:
    """Where the engine process ends during a write, the front end says so, unless the answer has
    begun: then nothing can be said any more, and the server cuts what is not whole."""
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    async def talk() -> None:
        structlog.contextvars.bind_contextvars(request_id="id")
        ours, theirs = socket.socketpair()
        front_end = Wire()
        relay = Relay(front_end, count())
        await front_end.attach(theirs, {}, lambda: None)
        scope = {"type": "http", "method": "DELETE", "path": "/adapters/sst2"}
        client = asyncio.create_task(relay(scope, receive, send))
        await asyncio.sleep(0)
        start = {"type": "http.response.start", "status": 204, "headers": []}
        if begun:
            relay.next(AppSend(0, start))
        relay.lost()
        if begun:
            await client
        else:
            with pytest.raises(OutcomeUnknown):
                await client
        assert sent == [start] * begun
        ours.close()

    asyncio.run(talk())


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
        here, front_end = Wire(), Wire()
        relay = Relay(front_end, count())
        relayed = RelayedRequest(here, 0, UnreadAnswers(1 << 20))
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
        await here.attach(ours, {RelayRequest: begin, Sent: lambda _: relayed.sent()}, lambda: None)
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


def test_answers_that_nobody_reads() -> None:
    """Where answers hold more than they may together for clients that do not read, those that began
    first are cut short; the app that sent one of them goes on, and its memory is free."""
    size = AHEAD + 3  # pieces of each answer, of which 3 wait where nobody reads
    sent: dict[int, bytes] = dict.fromkeys(range(4), b"")
    returned: list[int] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.body", "body": bytes(size * PIECE)})

    async def talk() -> None:
        ours, theirs = socket.socketpair()
        here, front_end = Wire(), Wire()
        unread = UnreadAnswers((2 * 3 + size) * PIECE)
        relayed = {call: RelayedRequest(here, call, unread) for call in sent}

        def taken(message: AppSend) -> None:
            sent[message.call] += message.message["body"]
            if message.call == 3:  # the one client that reads
                relayed[3].sent()

        await here.attach(ours, {}, lambda: None)
        handlers = {AppSend: taken, AppReturned: lambda message: returned.append(message.call)}
        await front_end.attach(theirs, handlers, lambda: None)
        answering = []
        for call, each in relayed.items():
            answering.append(asyncio.create_task(each.answer(app, "id", {})))
            while len(sent[call]) < AHEAD * PIECE:
                await asyncio.sleep(0)
        while len(returned) < 2:
            await asyncio.sleep(0)
        assert sorted(returned) == [0, 3]
        for _ in range(size):  # the two others' clients read now
            relayed[1].sent()
            relayed[2].sent()
        await asyncio.gather(*answering)
        while len(returned) < 4:
            await asyncio.sleep(0)

    asyncio.run(talk())
    assert len(sent[0]) == AHEAD * PIECE
    assert {len(sent[call]) for call in (1, 2, 3)} == {size * PIECE}

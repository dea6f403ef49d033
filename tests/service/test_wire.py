"""The wire between processes: messages come whole however their bytes are cut, and what is no
message ends it."""

from __future__ import annotations

import asyncio
import socket
from itertools import count, pairwise
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.workers import wire
from service.workers.relay import AHEAD, Relay, Relayed
from service.workers.wire import BrokenWire, Greeting, Messages, Wire, greeted

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
MESSAGE = st.builds(
    lambda kind, rest: [kind, *rest], st.text(max_size=8), st.lists(VALUES, max_size=4)
)


@given(st.lists(MESSAGE, max_size=6), st.lists(st.integers(0, 2000)))
def test_messages_cut_anywhere(messages: list[list[Any]], cuts: list[int]) -> None:
    """Messages are read as they were sent, one by one as their last bytes come, wherever the bytes
    are cut."""
    data = b"".join(map(msgpack.packb, messages))
    bounds = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    reader, found = Messages(), []
    for start, end in pairwise(bounds):
        found += reader.read(data[start:end])
        whole = msgpack.Unpacker()
        whole.feed(data[:end])
        assert len(found) == len(list(whole))
    assert found == messages


@given(st.binary(min_size=1))
def test_garbage(data: bytes) -> None:
    """Bytes that nobody packed are either the beginning of a message, a message, or refused:
    nothing else is raised."""
    try:
        messages = list(Messages().read(data))
    except BrokenWire:
        return
    assert all(isinstance(message, list) and isinstance(message[0], str) for message in messages)


@pytest.mark.parametrize("packed", [1, "run", [], [1, "run"], {"run": 1}, b"run"])
def test_what_is_no_message(packed: object) -> None:
    """A value of msgpack that is no list with a kind is refused, by its type."""
    with pytest.raises(BrokenWire, match="expected a list that begins with its kind"):
        Messages().read(msgpack.packb(packed))


def test_a_message_that_is_too_long() -> None:
    """What would not end within the limit is refused as it comes, before it is all there."""
    reader = Messages(max_bytes=1000)
    packed = msgpack.packb(["run", b"x" * 2000])
    for start in range(0, 1000, 100):
        assert list(reader.read(packed[start : start + 100])) == []
    with pytest.raises(BrokenWire):
        reader.read(packed[1000:1100])


def test_a_greeting() -> None:
    """The first message is waited for, however long it is; an end before it is told from one."""
    greeting = Greeting(
        "x" * 300_000, "[MASK]", None, "float32", 256, 1 << 20, 30, "info", "json", {}
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:

        async def greet() -> Greeting:
            engine = Wire()
            await engine.attach(ours, {}, lambda: None)
            engine.send("greet", vars(greeting))
            return await asyncio.to_thread(greeted, theirs)

        assert asyncio.run(greet()) == greeting
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        with pytest.raises(BrokenWire, match="the wire ended"):
            greeted(theirs)


def test_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one end sends the other's handlers are told; a message that is too long is refused
    before it is sent."""
    monkeypatch.setattr(wire, "MAX_BYTES", 1000)
    told: list[Any] = []

    async def talk() -> None:
        heard = asyncio.Event()
        first, second = Wire(), Wire()
        ours, theirs = socket.socketpair()
        await first.attach(ours, {}, lambda: None)
        await second.attach(
            theirs, {"count": lambda *rest: (told.append(rest), heard.set())}, lambda: None
        )
        with pytest.raises(BrokenWire, match="'run' has 2"):
            first.send("run", b"x" * 2000)
        first.send("count", ["sst2"], 200, 0.25)
        await heard.wait()

    asyncio.run(talk())
    assert told == [(["sst2"], 200, 0.25)]


@pytest.mark.parametrize("last", [b"", b"\xc1"])
def test_an_end(last: bytes) -> None:
    """Where the other process is gone, or sends garbage, this one is told once; what it sends from
    then on is dropped."""
    lost: list[str] = []

    async def listen() -> None:
        ended = asyncio.Event()
        ours, theirs = socket.socketpair()
        here = Wire()
        await here.attach(ours, {}, lambda: (lost.append("lost"), ended.set()))
        assert here.open
        with theirs:
            theirs.sendall(last)
            if last:
                await ended.wait()
        await ended.wait()
        assert not here.open
        here.send("ready")

    asyncio.run(listen())
    assert lost == ["lost"]


def test_a_client_that_reads_slowly() -> None:
    """The app is not let on while a client takes nothing of its answer; of a client that reads, it
    all arrives."""
    taken: list[bytes] = []
    given: list[int] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        for piece in range(100):
            await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
            given.append(piece)

    async def talk() -> None:
        ours, theirs = socket.socketpair()
        engine, front_end = Wire(), Wire()
        relay, answering, full, reads = (
            Relay(front_end, count()),
            set(),
            asyncio.Event(),
            asyncio.Event(),
        )
        relayed = Relayed(engine, 0)

        def begin(_number: int, _request_id: str, scope: Any) -> None:
            answering.add(asyncio.create_task(relayed.answer(app, "id", scope)))

        async def send(message: Any) -> None:
            taken.append(message["body"])
            full.set()
            await reads.wait()

        await engine.attach(ours, {"relay": begin, "sent": lambda _: relayed.sent()}, lambda: None)
        await front_end.attach(theirs, {"order": relay.order}, lambda: None)
        client = asyncio.create_task(relay({"type": "http"}, None, send))  # type: ignore[arg-type]
        await full.wait()
        for _ in range(1000):  # turns of the loop, in which the app could have gone on
            await asyncio.sleep(0)
        assert len(given) == AHEAD
        reads.set()
        await client

    asyncio.run(talk())
    assert taken == [b"x" * 1000] * 100

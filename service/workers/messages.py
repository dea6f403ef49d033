"""The messages between the engine process and one front end: a frozen class each.

    front end                                                  engine process

    at its start
                   <- Greeting                                 what a front end must know
                      Ready ->                                 it answers HTTP
    every second from then on
                   <- Ping
                      Pong ->                                  its event loop runs

    a prediction
                      Admit(call, task, version, place) ->     only for a task not seen before,
                   <- AdmitResult(call, digest, signature, …)  or a canary
                      Run(call, groups) ->                     the tokens of one request
                   <- RunResult(call, logits, …)
                      Tokenized(seconds) ->                    both for the metrics
                      Counted(tasks, status, seconds) ->

    a request that the engine process answers whole, as ASGI
                      RelayRequest(call, request_id, scope) ->
                   <- AppReceive(call)                         the app awaits receive()
                      Received(call, message) ->               which returned this
                   <- AppSend(call, message)                   the app awaits send(message)
                      Sent(call) ->                            the client has room for more
                   <- AppReturned(call, key)                   the app has returned

    in place of an answer
                   <- Refused(call, refusal, data)             to Admit and Run
                      Cancel(call) ->                          nobody waits for the answer

`call` numbers what a front end asks; each front end counts on its own. msgspec packs a message as a
msgpack array (the name of its class, then its fields in order) and checks every type as it reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import msgspec

from adapters.text import Tokens
from service.batcher import BatchReport, Outcome
from service.http.connections import ConnectionSettings
from service.predictor import Admitted, Logits, Role, Signature
from service.refusals import Closed, QueueFull, Referred


class BrokenWire(Exception):
    """Bytes that are no message, or too many for one."""


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    # mypy wants `frozen` of each class, too
    pass


class Greeting(_Message, frozen=True):
    """`tokenizer` is the tokeniser's JSON, `dtype` the backbone's on the device, `hosts` are
    `Guard`'s."""

    tokenizer: str
    mask_token: str | None
    api_key: str | None
    keys_file: str | None
    dtype: str
    max_inputs: int
    auto_truncate: bool
    hosts: list[str] | None
    root_path: str
    max_body_bytes: int
    max_wait_seconds: float
    drain_seconds: int
    log_level: str
    log_format: str
    connections: ConnectionSettings


class Ready(_Message, frozen=True):
    pass


class Ping(_Message, frozen=True):
    pass


class Pong(_Message, frozen=True):
    pass


class Admit(_Message, frozen=True):
    """`version` None: the active one, or the one that has `place` while the task has a canary."""

    call: int
    task: str
    version: str | None
    place: int | None = None


class AdmitResult(_Message, frozen=True):
    """`digest` is the sha256 of the adapter's file; `role` and `places` are `Admitted`'s."""

    call: int
    digest: str
    signature: Signature
    role: Role | None = None
    places: int = 0


class Row(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The tokens of one row, as `adapters.text.Tokens` has them."""

    ids: list[int]
    types: list[int]
    mask: int | None


class RowGroup(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Rows of one adapter. `digest` is the file that they were made for, `version` what the client
    asked for, `place` that of its key if the task had a canary."""

    task: str
    version: str | None
    digest: str
    rows: list[Row]
    place: int | None = None

    @classmethod
    def of(
        cls,
        adapter: Admitted,
        version: str | None,
        tokens: Sequence[Tokens],
        place: int | None = None,
    ) -> Self:
        rows = [Row(row.ids, row.types, row.mask) for row in tokens]
        return cls(adapter.signature.task, version, adapter.digest, rows, place)

    def tokens(self) -> list[Tokens]:
        """The rows."""
        return [Tokens(row.ids, row.types, len(row.ids), mask=row.mask) for row in self.rows]


class Run(_Message, frozen=True):
    """The rows of one request."""

    call: int
    groups: list[RowGroup]


class RowResult(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One row's logits, its seconds in the queue, and the index of its batch."""

    logits: Logits
    queued: float
    batch: int


class RunResult(_Message, frozen=True):
    """The rows' results in order, and their batches' reports. The reports' `waits` stay behind: a
    front end has no use for the waits of other requests' rows."""

    call: int
    rows: list[RowResult]
    reports: list[BatchReport]

    @classmethod
    def of(cls, call: int, outcomes: Sequence[Outcome[Logits]]) -> Self:
        batches = {id(outcome.batch): outcome.batch for outcome in outcomes}
        indices = {key: index for index, key in enumerate(batches)}
        return cls(
            call,
            [RowResult(each.value, each.queued, indices[id(each.batch)]) for each in outcomes],
            [
                BatchReport(each.rows, each.tokens, each.tasks, each.started, each.seconds, [])
                for each in batches.values()
            ],
        )

    def outcomes(self) -> list[Outcome[Logits]]:
        """Of each row, in order."""
        return [Outcome(row.logits, row.queued, self.reports[row.batch]) for row in self.rows]


class Refused(_Message, frozen=True):
    """Why Admit or Run has no other answer. `data` are the attributes of the refusal, which are the
    arguments that it is made from."""

    call: int
    refusal: Literal["QueueFull", "Closed", "Referred"]
    data: dict[str, Any]

    @classmethod
    def of(cls, call: int, error: QueueFull | Closed | Referred) -> Self:
        for name, kind in _REFUSALS.items():
            if isinstance(error, kind):
                return cls(call, name, vars(error))
        raise AssertionError(error)

    def error(self) -> Exception:
        """The refusal, to be raised."""
        return _REFUSALS[self.refusal](**self.data)


_REFUSALS: dict[
    Literal["QueueFull", "Closed", "Referred"], type[QueueFull] | type[Closed] | type[Referred]
] = {"QueueFull": QueueFull, "Closed": Closed, "Referred": Referred}


class Cancel(_Message, frozen=True):
    call: int


class Tokenized(_Message, frozen=True):
    seconds: float


class Counted(_Message, frozen=True):
    tasks: list[str]
    status: int
    seconds: float


class RelayRequest(_Message, frozen=True):
    call: int
    request_id: str
    scope: dict[str, Any]


class AppReceive(_Message, frozen=True):
    call: int


class Received(_Message, frozen=True):
    call: int
    message: dict[str, Any]


class AppSend(_Message, frozen=True):
    call: int
    message: dict[str, Any]


class Sent(_Message, frozen=True):
    call: int


class AppReturned(_Message, frozen=True):
    """`key` is the name of the key that the request bears, of the keys file."""

    call: int
    key: str | None


FromEngine = (
    Greeting | Ping | AdmitResult | RunResult | Refused | AppReceive | AppSend | AppReturned
)
FromFrontEnd = (
    Ready | Pong | Admit | Run | Cancel | Tokenized | Counted | RelayRequest | Received | Sent
)
Message = FromEngine | FromFrontEnd

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def packed(message: Message) -> bytes:
    """A message as it is on the wire."""
    return _ENCODER.encode(message)


def unpacked(data: bytes | bytearray) -> Message:
    """The message that was packed. Raises BrokenWire."""
    try:
        return _DECODER.decode(data)
    except msgspec.MsgspecError as error:
        raise BrokenWire(f"the wire has what is no message: {error}") from None

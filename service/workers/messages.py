"""The messages between the engine process and one front end: a frozen dataclass each.

    front end                                                  engine process

    at its start
                   <- Greeting                                 what a front end must know
                      Ready ->                                 it answers HTTP
    every second from then on
                   <- Ping
                      Pong ->                                  its event loop runs

    a prediction
                      Admit(call, task, version) ->            only for a task not seen before
                   <- AdmitResult(call, digest, signature)
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
                   <- AppReturned(call)                        the app has returned

    in place of an answer
                   <- Refused(call, refusal, data)             to Admit and Run
                      Cancel(call) ->                          nobody waits for the answer

`call` numbers what a front end asks; each front end counts on its own. On the wire a message is
`[the name of its class, {field: value}]` in msgpack, where a dataclass in a field is an object too.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, get_args

from pydantic import TypeAdapter, ValidationError

from adapters.spec import first_problem
from adapters.text import Tokens
from service.batcher import BatchReport, Outcome
from service.http.connections import ConnectionSettings
from service.predictor import Admitted, Logits, Signature
from service.refusals import Closed, QueueFull, Referred


class BrokenWire(Exception):
    """Bytes that are no message, or too many for one."""


@dataclass(frozen=True)
class Greeting:
    """`tokenizer` is the tokeniser's JSON, `dtype` the backbone's on the device."""

    tokenizer: str
    mask_token: str | None
    api_key: str | None
    dtype: str
    max_inputs: int
    max_body_bytes: int
    max_wait_seconds: float
    drain_seconds: int
    log_level: str
    log_format: str
    connections: ConnectionSettings


@dataclass(frozen=True)
class Ready:
    pass


@dataclass(frozen=True)
class Ping:
    pass


@dataclass(frozen=True)
class Pong:
    pass


@dataclass(frozen=True)
class Admit:
    """`version` None: the active one."""

    call: int
    task: str
    version: str | None


@dataclass(frozen=True)
class AdmitResult:
    """`digest` is the sha256 of the adapter's file."""

    call: int
    digest: str
    signature: Signature


@dataclass(frozen=True)
class RowGroup:
    """Rows of one adapter: in each list one item a row.

    `digest` is the file that the rows were made for, `version` what the client asked for. `ids` are
    unsigned 32-bit integers in the machine's byte order, `types` bytes; `masks` are the places of
    the prompts' masks.
    """

    task: str
    version: str | None
    digest: str
    ids: list[bytes]
    types: list[bytes]
    masks: list[int | None]

    @classmethod
    def of(cls, adapter: Admitted, version: str | None, rows: Sequence[Tokens]) -> Self:
        return cls(
            adapter.signature.task,
            version,
            adapter.digest,
            ids=[array("I", row.ids).tobytes() for row in rows],
            types=[bytes(row.types) for row in rows],
            masks=[row.mask for row in rows],
        )

    def tokens(self) -> list[Tokens]:
        """The rows. Raises ValueError for bytes that are no rows."""
        rows = []
        for packed, types, mask in zip(self.ids, self.types, self.masks, strict=True):
            ids = array("I", packed).tolist()
            rows.append(Tokens(ids, list(types), len(ids), mask=mask))
        return rows


@dataclass(frozen=True)
class Run:
    """The rows of one request."""

    call: int
    groups: list[RowGroup]


@dataclass(frozen=True)
class RunResult:
    """Of each row its logits, its seconds in the queue, and the index of its batch in `reports`.
    The reports' `waits` are left out: a front end does not need them."""

    call: int
    logits: list[Logits]
    queued: list[float]
    batches: list[int]
    reports: list[BatchReport]

    @classmethod
    def of(cls, call: int, outcomes: Sequence[Outcome[Logits]]) -> Self:
        reports = {id(outcome.batch): outcome.batch for outcome in outcomes}
        indices = {key: index for index, key in enumerate(reports)}
        return cls(
            call,
            logits=[outcome.value for outcome in outcomes],
            queued=[outcome.queued for outcome in outcomes],
            batches=[indices[id(outcome.batch)] for outcome in outcomes],
            reports=[replace(report, waits=[]) for report in reports.values()],
        )

    def outcomes(self) -> list[Outcome[Logits]]:
        """Of each row, in order."""
        rows = zip(self.logits, self.queued, self.batches, strict=True)
        return [Outcome(logits, queued, self.reports[batch]) for logits, queued, batch in rows]


@dataclass(frozen=True)
class Refused:
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


@dataclass(frozen=True)
class Cancel:
    call: int


@dataclass(frozen=True)
class Tokenized:
    seconds: float


@dataclass(frozen=True)
class Counted:
    tasks: list[str]
    status: int
    seconds: float


@dataclass(frozen=True)
class RelayRequest:
    call: int
    request_id: str
    scope: dict[str, Any]


@dataclass(frozen=True)
class AppReceive:
    call: int


@dataclass(frozen=True)
class Received:
    call: int
    message: dict[str, Any]


@dataclass(frozen=True)
class AppSend:
    call: int
    message: dict[str, Any]


@dataclass(frozen=True)
class Sent:
    call: int


@dataclass(frozen=True)
class AppReturned:
    call: int


FromEngine = (
    Greeting | Ping | AdmitResult | RunResult | Refused | AppReceive | AppSend | AppReturned
)
FromFrontEnd = (
    Ready | Pong | Admit | Run | Cancel | Tokenized | Counted | RelayRequest | Received | Sent
)
Message = FromEngine | FromFrontEnd

_READERS = {kind.__name__: TypeAdapter(kind) for kind in get_args(Message)}


def packed(message: Message) -> tuple[str, dict[str, Any]]:
    """What is put on the wire for a message; `fields_of` gives the dataclasses in it."""
    return type(message).__name__, fields_of(message)


def fields_of(value: Any) -> dict[str, Any]:
    """A dataclass as an object of msgpack. Raises TypeError for anything else."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def unpacked(value: object) -> Message:
    """The message that was packed. Raises BrokenWire."""
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
        raise BrokenWire(
            f"the wire has a value of type {type(value).__name__}; expected a kind and its fields"
        )
    kind, found = value
    reader = _READERS.get(kind)
    if reader is None:
        raise BrokenWire(f"the wire has a message {kind[:40]!r}; expected {', '.join(_READERS)}")
    try:
        message: Message = reader.validate_python(found)
    except ValidationError as error:
        raise BrokenWire(f"a message {kind!r} on the wire: {first_problem(error)}") from None
    return message

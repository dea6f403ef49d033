"""Every error that a request can get, without HTTP: `service.http.answers` gives each a status.

    AdaMixError
    ├── what `adapters.errors` draws: a task, a version, a file, a text, the store
    └── Refusal
        ├── MalformedBody       not JSON, not a form
        ├── CompressedBody      a body with a Content-Encoding
        ├── InvalidRequest      JSON whose fields are not what they should be
        ├── MissingKey          no bearer token, or a wrong one
        ├── TooManyWrongKeys    from one address within a minute
        ├── MissingScope        a key of the keys file that may not do this
        ├── KeyLimited          more requests or rows than the key may send
        ├── KeyUnchecked        too many keys wait for their check
        ├── ForeignPage         a browser page of another origin asks to write
        ├── ForeignHost         a Host that is not this machine's, while it listens on loopback
        ├── RequestTooSlow      an upload that stalls while others wait for room
        ├── BodyTooLarge
        ├── TooManyInputs
        ├── InputTooLong        more tokens than the adapter takes, and no leave to cut them
        ├── AnswerTooLarge      long labels, for too many inputs
        ├── QueueFull           no room for the request's rows, or not soon enough
        ├── Closed              the service is stopping
        ├── OutcomeUnknown      the service ended during a write
        ├── Stale               the lease has run out since the bucket was last read
        ├── BehindGeneration    the request bears a generation that this replica does not know yet
        ├── NotFinite           logits that are NaN or infinite
        ├── DeviceOutOfMemory   the device lacks memory for a row alone
        ├── AdapterNotLoaded    the device cannot take an adapter
        ├── ClientClosed        the client left; nobody reads the answer
        └── Referred            a front end cannot answer: the engine process gets the request

Each message is one sentence that names the thing, the value found and the value expected. This
file imports the standard library and `adapters.errors` alone, so that the batcher, the engine and a
front end can raise what stands here without loading each other.
"""

from __future__ import annotations

from adapters.errors import AdaMixError


class Refusal(AdaMixError):
    """An error that a request is answered with."""


class MalformedBody(Refusal):
    """A body that is not what its content type says."""


class CompressedBody(Refusal):
    """A compressed body: what it would become has no limit."""


class InvalidRequest(Refusal):
    """A request whose fields are not what they should be."""


class MissingKey(Refusal):
    """A request that bears no key where one is needed, or a wrong one."""


class TooManyWrongKeys(Refusal):
    """An address that sent too many wrong keys within a minute. `retry_after` is in seconds."""

    def __init__(self, retry_after: int) -> None:
        self.retry_after = retry_after
        super().__init__(
            "this address sent too many wrong keys; expected the right one, in"
            f" {retry_after} second{'' if retry_after == 1 else 's'}"
        )


class MissingScope(Refusal):
    """A key of the keys file that may not do this."""


class KeyLimited(Refusal):
    """More `what` (requests or rows) than a key may send; none was taken. `retry_after` is in
    seconds."""

    def __init__(self, name: str, what: str, rate: float, retry_after: int) -> None:
        self.retry_after = retry_after
        super().__init__(
            f"the key {name!r} may send {rate:g} {what} a second, and this is more; expected it in"
            f" {retry_after} second{'' if retry_after == 1 else 's'}"
        )


class KeyUnchecked(Refusal):
    """A key of which nothing is known yet, while too many others wait for their check."""

    retry_after = 1

    def __init__(self) -> None:
        super().__init__(
            "too many keys wait for their check, so this one was not checked; expected it again in"
            " a second"
        )


class ForeignPage(Refusal):
    """A web page of another origin asks to write, where no key is needed."""


class ForeignHost(Refusal):
    """A request for a host that is not this machine's loopback, where the service listens there."""


class RequestTooSlow(Refusal):
    """An upload whose client sends too little of it while others wait for room."""

    def __init__(self) -> None:
        super().__init__(
            "too little of this upload came within the last seconds, while other uploads wait for"
            " room; expected it without breaks: try again"
        )


class BodyTooLarge(Refusal):
    """A body with more bytes than the service reads."""

    def __init__(self, found: int, limit: int) -> None:
        super().__init__(f"the request's body has {found} bytes or more; expected at most {limit}")


class TooManyInputs(Refusal):
    """A request with more rows than one request may have."""


class InputTooLong(Refusal):
    """An input with more tokens than its adapter takes, where the client did not ask to cut it."""


class AnswerTooLarge(Refusal):
    """A request whose answer would be larger than the service makes."""


class QueueFull(Refusal):
    """The queue has no room for a request, or not soon enough; none of its rows was queued.
    `retry_after`: in how many seconds what is queued now should be done."""

    def __init__(self, retry_after: int = 1) -> None:
        self.retry_after = retry_after
        when = "a second" if retry_after == 1 else f"{retry_after} seconds"
        super().__init__(f"the queue is full; expected fewer rows at once: try again in {when}")


class Closed(Refusal):
    """The batcher takes no more rows: the service is stopping."""

    def __init__(self) -> None:
        super().__init__("the service is stopping; expected requests to go to another replica")


class OutcomeUnknown(Refusal):
    """The service, or its engine process, ended during a write: the store holds what was written,
    or what was there before."""

    def __init__(self) -> None:
        super().__init__(
            "the service ended during this write, and whether it was done is unknown;"
            " expected GET /adapters/{task} to show it once the service is back"
        )


class Stale(Refusal):
    """The bucket was read longer ago than the lease: a balancer should prefer another replica."""

    def __init__(self, age: float, lease: float) -> None:
        last = "was never read" if age == float("inf") else f"was last read {age:.1f} s ago"
        super().__init__(
            f"the store's bucket {last}; expected at most {lease:g} s (ADAMIX_STORE_LEASE_SECONDS)"
        )


class BehindGeneration(Refusal):
    """A request that may not be answered by as old a state as this replica has."""

    retry_after = 1

    def __init__(self, known: int, asked: int) -> None:
        super().__init__(
            f"this replica knows the store's generation {known}; expected {asked}, which the"
            " request's X-Adamix-Generation asks for: try again in a second"
        )


class NotFinite(Refusal):
    """Logits that are NaN or infinite: the adapter overflows on a text, in the dtype it runs in."""

    def __init__(self, adapter_key: str, message: str) -> None:
        self.adapter_key = adapter_key
        super().__init__(message)


class DeviceOutOfMemory(Refusal):
    """The device has too little memory for a batch; for a request, one of whose rows has no room
    alone."""


class AdapterNotLoaded(Refusal):
    """An adapter that could not be put on the device: its rows fail, those of others do not."""

    def __init__(self, adapter_key: str, message: str) -> None:
        self.adapter_key = adapter_key
        super().__init__(message)


class ClientClosed(Refusal):
    """The client closed the connection before its answer was ready."""


class Referred(Refusal):
    """A front end cannot answer this request. Never answered: the engine process gets it whole."""

    def __init__(self) -> None:
        super().__init__("this process cannot answer the request; expected the engine process to")

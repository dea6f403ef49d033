"""Every error that this package raises on purpose.

    AdaMixError
    ├── InvalidAdapter          a file or spec that breaks docs/adapter-format.md
    │   ├── BackboneMismatch    a valid adapter, made for another backbone
    │   └── InvalidPrompt       a template that breaks the format or does not suit the backbone
    ├── BackboneError           a backbone that cannot be found, read or served
    ├── CannotConvert           another library's file that cannot be converted, or the reverse
    ├── CannotUpload            a server that cannot be reached or refuses a file
    ├── DataError               a data file that cannot be read or is not what is needed
    ├── PackageMissing          a package that is not installed
    ├── InvalidText             an input text that no tokeniser can take
    ├── InvalidWindow           a stride, or a pair's shorter text, that leaves a window no room
    ├── TooManyWindows          a text with more windows than its request has rows left
    └── StoreError              the store cannot do what was asked
        ├── UnknownTask
        ├── UnknownVersion
        ├── AmbiguousVersion    a prefix that fits several versions
        ├── NoActiveVersion     a task whose versions are all inactive
        ├── VersionIsActive     the active version cannot be deleted by itself
        ├── VersionInTraffic    nor can a canary or a shadow
        ├── ActiveHasChanged    a split of the traffic for a version that is not the active one
        ├── DamagedAdapter      what is stored is not what it was, or cannot be read
        └── StoreUnreachable    the bucket of a store gives no answer
            └── WriteUnknown    a write to a bucket, of which nobody knows whether it was done

Each message is one sentence that names the thing, the value found and the value expected. It
quotes at most some 200 characters of what was found.
"""


class AdaMixError(Exception):
    """The root of the tree. Catch it to turn any of our refusals into a message."""


class InvalidAdapter(AdaMixError):
    """A file or spec that breaks the adapter format."""


class BackboneMismatch(InvalidAdapter):
    """A valid adapter that was made for another backbone."""


class InvalidPrompt(InvalidAdapter):
    """A template that breaks the adapter format, or that a backbone cannot use."""


class BackboneError(AdaMixError):
    """A backbone that cannot be found, read or served."""


class CannotConvert(AdaMixError):
    """Another library's file that is damaged or computes what an adapter file cannot say; or an
    adapter that the other library cannot load."""


class CannotUpload(AdaMixError):
    """A server that cannot be reached or refuses a file."""


class DataError(AdaMixError):
    """A data file that cannot be read, or is not what is needed."""


class PackageMissing(AdaMixError):
    """A package that is not installed."""


class InvalidText(AdaMixError):
    """An input text that is empty, unprintable or not encodable."""


class InvalidWindow(AdaMixError):
    """A stride, or a pair's shorter text, that leaves a window no room."""


class TooManyWindows(AdaMixError):
    """A text with more windows than its request has rows left."""


class StoreError(AdaMixError):
    """The store cannot do what was asked.

    `detail` is for operators alone, on a terminal or in a log: what the bucket's client said, with
    the address that it asked.
    """

    def __init__(self, message: str, detail: str = "") -> None:
        self.detail = detail
        super().__init__(message)


def for_operators(error: Exception) -> str:
    """The sentence of an error, with the detail that no client gets."""
    detail = getattr(error, "detail", "")
    return f"{error} ({detail})" if detail else str(error)


class UnknownTask(StoreError):
    """No adapter of that task is stored."""

    def __init__(self, message: str, task: str) -> None:
        self.task = task
        super().__init__(message)


class UnknownVersion(StoreError):
    """The task has no such version."""


class AmbiguousVersion(StoreError):
    """A version prefix fits more than one version."""


class NoActiveVersion(StoreError):
    """The task has versions, none of them active."""


class VersionIsActive(StoreError):
    """The version is the active one and cannot be deleted by itself."""


class VersionInTraffic(StoreError):
    """The version is a canary or a shadow and cannot be deleted by itself."""


class ActiveHasChanged(StoreError):
    """A split of a task's traffic names a version as active that is not."""


class DamagedAdapter(StoreError):
    """What is stored is not what it was, or cannot be read."""


class StoreUnreachable(StoreError):
    """The bucket of a store gives no answer, or answers with a fault of its own."""


class WriteUnknown(StoreUnreachable):
    """A write to a bucket may have been done, or may be done later."""

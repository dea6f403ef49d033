"""Every error this package raises on purpose.

    AdaMixError
    ├── InvalidAdapter          a file or spec breaks the format (docs/adapter-format.md)
    │   ├── BackboneMismatch    a valid adapter, made for another backbone
    │   └── InvalidPrompt       a template that breaks the format, or that the backbone has no use
    for
    ├── BackboneError           a backbone cannot be found, read or served
    ├── CannotConvert           a file of another maker that is damaged, or does not compute what
    ours can
    ├── CannotUpload            a server that cannot be reached, or does not take a file
    ├── InvalidText             an input text that no tokeniser should see
    ├── InvalidWindow           a stride, or a pair's shorter text, that leaves a window no room
    ├── TooManyWindows          a text whose windows are more than the rows that are left to it
    └── StoreError              the store cannot do what was asked
        ├── UnknownTask
        ├── UnknownVersion
        ├── AmbiguousVersion    a prefix that fits several versions
        ├── NoActiveVersion     a task whose versions are all inactive
        ├── VersionIsActive     the active version cannot be deleted by itself
        └── DamagedAdapter      a stored file no longer has the digest it is named by

Each message is one sentence that names the thing, the value found and the value expected.
"""


class AdaMixError(Exception):
    """Root of the tree: catch it to turn any of our refusals into a message."""


class InvalidAdapter(AdaMixError):
    """A file or spec that breaks the adapter format."""


class BackboneMismatch(InvalidAdapter):
    """A valid adapter that was made for another backbone."""


class InvalidPrompt(InvalidAdapter):
    """A template that breaks the adapter format, or that a backbone cannot use."""


class BackboneError(AdaMixError):
    """A backbone that cannot be found, read or served."""


class CannotConvert(AdaMixError):
    """A file of another maker that is damaged, or does not compute what an adapter file can say; or
    the other way round."""


class CannotUpload(AdaMixError):
    """A server that cannot be reached, or does not take a file."""


class InvalidText(AdaMixError):
    """An input text that is empty, unprintable or not encodable."""


class InvalidWindow(AdaMixError):
    """A stride, or a pair's shorter text, that leaves a window no room."""


class TooManyWindows(AdaMixError):
    """A text whose windows are more than the rows that are left to it."""


class StoreError(AdaMixError):
    """The store cannot do what was asked."""


class UnknownTask(StoreError):
    """No adapter of that task is stored."""


class UnknownVersion(StoreError):
    """The task has no such version."""


class AmbiguousVersion(StoreError):
    """A version prefix fits more than one version."""


class NoActiveVersion(StoreError):
    """The task has versions, none of them active."""


class VersionIsActive(StoreError):
    """The version is the active one and cannot be deleted by itself."""


class DamagedAdapter(StoreError):
    """A stored file does not have the digest that it is named by."""

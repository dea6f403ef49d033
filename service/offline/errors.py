"""What scoring a file refuses, on top of `adapters.errors`."""

from __future__ import annotations

from adapters.errors import AdaMixError


class CannotScore(AdaMixError):
    """A file that cannot be scored, or whose scores cannot be written."""

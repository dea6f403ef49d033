"""The garbage collector while a command starts."""

from __future__ import annotations

import gc

import pytest

from adapters.startup import without_collection


def test_it_is_off_meanwhile_and_on_afterwards() -> None:
    """It is off in the block, and on after it."""
    with without_collection():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_is_on_after_an_error() -> None:
    """A start that fails leaves it on."""
    with pytest.raises(ImportError, match="no such module"), without_collection():
        raise ImportError("no such module")
    assert gc.isenabled()

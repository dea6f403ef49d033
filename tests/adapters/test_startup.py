"""The garbage collector while a command starts."""

from __future__ import annotations

import gc

import pytest

from adapters.startup import without_collection


def test_it_is_off_meanwhile_and_on_afterwards() -> None:
    """It is off in the block and on after it, and what the block made is not looked at again."""
    before = gc.get_freeze_count()
    with without_collection():
        assert not gc.isenabled()
        made = [[] for _ in range(10_000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(made)
    gc.unfreeze()


def test_it_is_on_after_an_error() -> None:
    """A start that fails leaves it on."""
    with pytest.raises(ImportError, match="no such module"), without_collection():
        raise ImportError("no such module")
    assert gc.isenabled()
    gc.unfreeze()

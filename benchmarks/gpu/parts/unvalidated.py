"""The specs of adapters where pydantic is not installed: made, but not checked.

A lent GPU machine has torch and transformers, no network, and neither pydantic nor FastAPI. The
engine needs of a spec only what stands in it.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


def make_importable() -> None:
    """Import `adapters.spec`, with pydantic or without. Nobody else gets to see what stands in for
    it."""
    try:
        importlib.import_module("pydantic")
    except ModuleNotFoundError:
        sys.modules["pydantic"] = _stand_in()
        try:
            importlib.import_module("adapters.spec")
        finally:
            del sys.modules["pydantic"]


class _Model:
    """Holds what it is given; a field's default is the class's attribute."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


def _stand_in() -> ModuleType:
    """The names that `adapters.spec` imports."""
    module = ModuleType("pydantic")
    vars(module).update(
        AfterValidator=lambda check: check,
        BaseModel=_Model,
        ConfigDict=dict,
        Field=lambda default=None, **_rules: default,
        JsonValue=Any,
        StringConstraints=dict,
        ValidationError=ValueError,
        model_validator=lambda **_when: lambda check: check,
    )
    return module

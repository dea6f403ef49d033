"""The families of encoders that can be loaded, by their model types. A further family is a file
beside this one and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapters.families import bert, deberta_v2, distilbert, modernbert, mpnet
from adapters.families.family import Family

FAMILIES: Mapping[str, Family] = {
    model_type: family
    for family in (
        *bert.FAMILIES,
        distilbert.FAMILY,
        mpnet.FAMILY,
        modernbert.FAMILY,
        deberta_v2.FAMILY,
    )
    for model_type in family.model_types
}


def family_of(config: Any) -> Family:
    """The family of a model type that `load` has checked."""
    return FAMILIES[config.model_type]

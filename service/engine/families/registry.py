"""Which model types the engine can run, and who describes each. A further family is a file beside
this one and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from adapters.backbone import Backbone
from adapters.errors import BackboneError
from service.engine.architecture import Architecture
from service.engine.families import bert, deberta_v2, distilbert, modernbert, mpnet

FAMILIES: Mapping[str, Callable[[Backbone], Architecture]] = {
    model_type: family.describe
    for family in (bert, distilbert, mpnet, modernbert, deberta_v2)
    for model_type in family.MODEL_TYPES
}


def describe(backbone: Backbone) -> Architecture:
    """The backbone's description. Raises BackboneError if the engine has no such family."""
    model_type = backbone.config.model_type
    if model_type not in FAMILIES:
        raise BackboneError(
            f"backbone {backbone.name!r} is a {model_type!r}; expected one of {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type](backbone)

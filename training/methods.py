"""What each method attaches to the backbone and what of it may learn; how it is trained and judged
is the same for all.

    adamix    a mixture in every layer (training by random routing): of bottlenecks after the
    feed-forward output, or with `adaptation` lora of LoRA's A and B at each of its sites
    adapter   one bottleneck at the same site (Pfeiffer et al. 2021)
    adapter-rdrop
              a single one of either adaptation, trained by two passes that differ by dropout
              alone and both carry the task's loss (R-Drop, Liang et al. 2021): what a mixture must
              beat to be worth its experts
    houlsby   a second bottleneck after the attention output (Houlsby et al. 2019): twice the
    adapter's parameters
    lora      low-rank updates of linear modules, by default query and value (Hu et al. 2022)
    bitfit    the encoder's own biases (Ben Zaken et al. 2022)
    full      all of the encoder: full fine-tuning
    head      nothing but the head

Each has a fresh head, or with a prompt the frozen one of its words. Methods that change the encoder
work on a copy of it: the shared one stays as it is, to the bit.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from adapters.backbone import POOLER_PREFIX, Backbone
from adapters.bottleneck import Bottleneck, RoutedBottleneck
from adapters.classifier import Classifier, Head, WordHead
from adapters.header import site_sizes
from adapters.lora import Lora, RoutedLora
from adapters.spec import LoraSite, Pooling
from training.config import SERVABLE, Recipe
from training.errors import TrainingError


def build(
    backbone: Backbone, labels: int, recipe: Recipe, words: WordHead | None = None
) -> Classifier:
    """The model to train, with a fresh head or that of `words`; what requires gradients in it is
    what the method trains. Raises TrainingError if the backbone has no layer for an adapter."""
    config = backbone.config
    adapted = config.num_hidden_layers - recipe.first_layer
    if adapted < 1:
        raise TrainingError(
            f"first_layer is {recipe.first_layer}; expected less than {config.num_hidden_layers},"
            " the backbone's layers"
        )
    pooling = "mask" if words is not None else recipe.pooling or backbone.default_pooling
    if recipe.method not in (*SERVABLE, "head"):
        encoder = copy.deepcopy(backbone.encoder)
        _change(encoder, recipe, pooling)
        backbone = dataclasses.replace(backbone, encoder=encoder)
    sites = nn.ModuleList(_site(config, recipe) for _ in range(adapted))
    dense = recipe.dense_head if recipe.dense_head is not None else config.model_type != "bert"
    dropout = getattr(config, "classifier_dropout", None)
    fresh = Head(
        config.hidden_size,
        labels,
        dense=dense,
        dropout=config.hidden_dropout_prob if dropout is None else dropout,
    )
    return Classifier(backbone, sites, fresh if words is None else words, pooling).to(
        backbone.encoder.device
    )


def trained_parameters(model: Classifier) -> int:
    """Numbers that a model has beyond the frozen backbone's, its head left out as in the paper."""
    return sum(
        p.numel()
        for p in [*model.encoder.parameters(), *model.sites.parameters()]
        if p.requires_grad
    )


def _site(config: Any, recipe: Recipe) -> nn.Module:
    """What a layer of the encoder has: LoRA at its sites, or what stands after its feed-forward
    output."""
    if recipe.adaptation == "lora":
        return nn.ModuleDict({site: _lora(config, recipe, site) for site in recipe.ranks})
    d, r = config.hidden_size, recipe.bottleneck
    if recipe.method == "adamix":
        return RoutedBottleneck(
            d, r, recipe.experts, share_down=recipe.share_down, share_up=recipe.share_up
        )
    single = ("adapter", "adapter-rdrop", "houlsby")
    return Bottleneck(d, r) if recipe.method in single else nn.Identity()


def _lora(config: Any, recipe: Recipe, site: LoraSite) -> nn.Module:
    sizes = site_sizes(site, config.hidden_size, config.intermediate_size)
    if recipe.method != "adamix":
        return Lora(*sizes, recipe.rank, recipe.scale)
    return RoutedLora(
        *sizes,
        recipe.rank,
        recipe.scale,
        recipe.experts,
        share_down=recipe.share_down,
        share_up=recipe.share_up,
    )


def _change(encoder: PreTrainedModel, recipe: Recipe, pooling: Pooling) -> None:
    """Attach or unfreeze, within a copy of the encoder; a pooler that is not used learns
    nothing."""
    d, r = encoder.config.hidden_size, recipe.bottleneck
    if recipe.method == "houlsby":
        for layer in cast(nn.ModuleList, encoder.get_submodule("encoder.layer")):
            output = layer.get_submodule("attention.output")
            output.register_module(
                "dense", nn.Sequential(output.get_submodule("dense"), Bottleneck(d, r))
            )
    else:
        for name, parameter in encoder.named_parameters():
            used = pooling == "pooler" or not name.startswith(POOLER_PREFIX)
            parameter.requires_grad_(used and (recipe.method == "full" or name.endswith("bias")))

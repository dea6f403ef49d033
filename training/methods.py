"""What each method attaches to the backbone and what of it may learn; how it is trained and judged
is the same for all.

    adamix    a mixture of bottlenecks after the feed-forward output of every layer (training by
    random routing)
    adapter   one bottleneck at the same site (Pfeiffer et al. 2021)
    adapter-rdrop
              the same, trained by two passes that differ by dropout alone and both carry the task's
              loss (R-Drop, Liang et al. 2021): what a mixture must beat to be worth its experts
    houlsby   a second bottleneck after the attention output (Houlsby et al. 2019): twice the
    adapter's parameters
    lora      low-rank updates of query and value (Hu et al. 2022), by `peft`; the rank gives the
    adapter's parameters
    bitfit    the encoder's own biases (Ben Zaken et al. 2022)
    full      all of the encoder: full fine-tuning
    head      nothing but the head

Each has a fresh head, or with a prompt the frozen one of its words. Methods that change the encoder
work on a copy of it: the shared one stays as it is, to the bit.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import cast

from torch import nn
from transformers import PreTrainedModel

from adapters.backbone import POOLER_PREFIX, Backbone
from adapters.bottleneck import Bottleneck, RoutedBottleneck
from adapters.classifier import Classifier, Head, WordHead
from adapters.spec import Pooling
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
    sites = nn.ModuleList(_site(config.hidden_size, recipe) for _ in range(adapted))
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


def _site(d: int, recipe: Recipe) -> nn.Module:
    """What stands after a layer's feed-forward output."""
    r = recipe.bottleneck
    if recipe.method == "adamix":
        return RoutedBottleneck(
            d, r, recipe.experts, share_down=recipe.share_down, share_up=recipe.share_up
        )
    single = ("adapter", "adapter-rdrop", "houlsby")
    return Bottleneck(d, r) if recipe.method in single else nn.Identity()


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
    elif recipe.method == "lora":
        _attach_lora(encoder, lora_rank(d, r))
    else:
        for name, parameter in encoder.named_parameters():
            used = pooling == "pooler" or not name.startswith(POOLER_PREFIX)
            parameter.requires_grad_(used and (recipe.method == "full" or name.endswith("bias")))


def lora_rank(d: int, r: int) -> int:
    """The rank at which query and value (4·rank·d a layer) cost what a bottleneck does (2·r·d + r +
    d), rounded."""
    return max(1, round((2 * r * d + r + d) / (4 * d)))


def _attach_lora(encoder: PreTrainedModel, rank: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model  # six seconds, for those who want it

    # A scale of 1 (alpha = rank), as Hu et al. have it for RoBERTa; the learning rate is what a
    # search varies.
    inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=rank, target_modules=["query", "value"]), encoder
    )

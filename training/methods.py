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

from torch import nn

from adapters.attach import encoder_layers
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
    _check_sites(backbone, recipe)
    pooling = "mask" if words is not None else recipe.pooling or backbone.default_pooling
    if recipe.method not in (*SERVABLE, "head"):
        backbone = dataclasses.replace(backbone, encoder=copy.deepcopy(backbone.encoder))
        _change(backbone, recipe, pooling)
    sites = nn.ModuleList(_site(backbone, recipe) for _ in range(adapted))
    said, own = backbone.encoder_config, backbone.family.dense_head
    dense = recipe.dense_head if recipe.dense_head is not None else own is not None
    fresh = Head(
        config.hidden_size,
        labels,
        dense=dense,
        norm_eps=said.norm_eps if dense and own == "gelu-norm" else None,
        dropout=said.dropout,
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


def _check_sites(backbone: Backbone, recipe: Recipe) -> None:
    places = backbone.family.places
    for site in recipe.ranks if recipe.adaptation == "lora" else ():
        if site not in places:
            raise TrainingError(
                f"sites has {site!r}, which the layers of backbone {backbone.name!r} do not have;"
                f" expected some of {', '.join(places)}"
            )


def _site(backbone: Backbone, recipe: Recipe) -> nn.Module:
    """What a layer of the encoder has: LoRA at its sites, or what stands after its feed-forward
    output."""
    if recipe.adaptation == "lora":
        return nn.ModuleDict({site: _lora(backbone, recipe, site) for site in recipe.ranks})
    d, r = backbone.config.hidden_size, recipe.bottleneck
    if recipe.method == "adamix":
        return RoutedBottleneck(
            d, r, recipe.experts, share_down=recipe.share_down, share_up=recipe.share_up
        )
    single = ("adapter", "adapter-rdrop", "houlsby")
    return Bottleneck(d, r) if recipe.method in single else nn.Identity()


def _lora(backbone: Backbone, recipe: Recipe, site: LoraSite) -> nn.Module:
    inner = backbone.encoder_config.intermediate_size
    sizes = site_sizes(site, backbone.config.hidden_size, inner)
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


def _change(backbone: Backbone, recipe: Recipe, pooling: Pooling) -> None:
    """Attach or unfreeze, within a backbone of its own; a pooler that is not used learns nothing.
    Raises TrainingError if there is nothing to unfreeze."""
    encoder = backbone.encoder
    d, r = encoder.config.hidden_size, recipe.bottleneck
    if recipe.method == "houlsby":
        parent, _, name = backbone.family.places["attention_out"].module.rpartition(".")
        for layer in encoder_layers(encoder):
            output = layer.get_submodule(parent)
            output.register_module(
                name, nn.Sequential(output.get_submodule(name), Bottleneck(d, r))
            )
        return
    for name, parameter in encoder.named_parameters():
        used = pooling == "pooler" or not name.startswith(POOLER_PREFIX)
        parameter.requires_grad_(used and (recipe.method == "full" or name.endswith("bias")))
    if not any(parameter.requires_grad for parameter in encoder.parameters()):
        raise TrainingError(
            f"method is {recipe.method!r}, which trains the encoder's biases, and backbone"
            f" {backbone.name!r} has none; expected another method"
        )

"""What choosing the best epoch on dev is worth, as the paper's code does it
(`load_best_model_at_end`): a run's dev score after every epoch. The protocol reads the last."""

from __future__ import annotations

import torch

from adapters.backbone import Backbone
from adapters.classifier import Classifier, from_tensors, to_tensors
from adapters.merge import merge
from adapters.text import encode
from training.config import SERVABLE, Recipe
from training.data import Dataset
from training.fit import fit
from training.methods import build
from training.progress import Progress
from training.scoring import predict, scores


def by_epoch(
    backbone: Backbone, train: Dataset, dev: Dataset, recipe: Recipe, metric: str
) -> list[float]:
    """The dev score after each epoch of the run that `training.one_run.measure` makes; a mixture's
    is that of its merged adapter."""
    torch.manual_seed(recipe.seed)
    rows, dev_rows = (encode(backbone.tokenizer, s.texts, recipe.max_length) for s in (train, dev))
    model = build(backbone, len(train.labels), recipe)
    found: list[float] = []

    def judge(at: Progress) -> None:
        if at.step % (at.steps // recipe.epochs) == 0:
            logits = predict(_judged(model, backbone, recipe), dev_rows)
            found.append(scores(dev, logits, recipe.positive)[metric])
            model.train()  # predicting put it, and the encoder, into eval mode

    fit(model, train, rows, recipe, judge)
    return found


def _judged(model: Classifier, backbone: Backbone, recipe: Recipe) -> Classifier:
    if recipe.method not in SERVABLE:
        return model
    tensors = to_tensors(merge(model.sites), model.head, getattr(torch, recipe.dtype))
    return from_tensors(backbone, tensors, model.pooling, recipe.scale)

"""A head that is fitted before anything is trained."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from adapters.backbone import Backbone
from adapters.classifier import Classifier, Head, collate
from adapters.text import encode
from tests.training.test_training import NUMBERS, PAIRS, QUICK, SEVERAL, SINGLE
from training.data import Dataset
from training.head_first import fit_head
from training.methods import build
from training.one_run import measure
from training.scoring import predict, scores

HEAD = dataclasses.replace(QUICK, method="head", head_first=True)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(
    ("data", "metric"),
    [(SINGLE, "accuracy"), (PAIRS, "accuracy"), (SEVERAL, "accuracy"), (NUMBERS, "pearson")],
)
def test_it_fits(embedded: Backbone, data: Dataset, metric: str, dense: bool) -> None:
    """A separable task of each kind is solved by the fitted head alone, whatever its form."""
    model = build(embedded, len(data.labels), dataclasses.replace(HEAD, dense_head=dense))
    rows = encode(embedded.tokenizer, data.texts, 32)
    fit_head(model, embedded, data, rows)
    assert scores(data, predict(model, rows))[metric] >= 0.97


@torch.no_grad()
def test_it_is_the_logistic_regression(bert: Backbone) -> None:
    """The head's probabilities are scikit-learn's on the standardised embeddings; adapters and the
    encoder stay as they are."""
    model = build(bert, 2, dataclasses.replace(QUICK, head_first=True, pooling="mean"))
    rows = encode(bert.tokenizer, SINGLE.texts, 32)
    before = {name: p.clone() for name, p in model.named_parameters()}
    fit_head(model, bert, SINGLE, rows)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"head.out.weight", "head.out.bias"}

    bare = Classifier(bert, torch.nn.ModuleList([torch.nn.Identity()] * 2), model.head, "mean")
    assert isinstance(bare.head, Head)
    seen: list[torch.Tensor] = []
    hook = bare.head.register_forward_pre_hook(lambda _, pooled: seen.append(pooled[0]))
    logits = bare.eval()(collate(rows))
    hook.remove()
    features = seen[0].double().numpy()
    standard = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    expected = LogisticRegression(max_iter=1000).fit(standard, SINGLE.targets)
    found = torch.softmax(logits, dim=-1).numpy()
    np.testing.assert_allclose(found, expected.predict_proba(standard), atol=1e-3)


def test_labels_that_no_row_has(bert: Backbone) -> None:
    """Examples that lack a label still tell the others apart, and the lacking one is rare."""
    few = Dataset(SINGLE.problem_type, ("a", "b", "none"), SINGLE.texts, SINGLE.targets)
    model = build(bert, 3, HEAD)
    rows = encode(bert.tokenizer, few.texts, 32)
    fit_head(model, bert, few, rows)
    assert predict(model, rows).argmax(dim=-1).tolist() == few.targets
    alone = dataclasses.replace(few, targets=[2] * len(few.texts))
    fit_head(model, bert, alone, rows)
    assert set(predict(model, rows).argmax(dim=-1).tolist()) == {2}


def test_a_run_begins_there(embedded: Backbone) -> None:
    """With the head fitted first a run solves in one short epoch what it does not from nothing."""
    recipe = dataclasses.replace(QUICK, learning_rate=1e-5)
    first, nothing = (
        measure(embedded, SINGLE, SINGLE, dataclasses.replace(recipe, head_first=head_first))
        for head_first in (True, False)
    )
    assert first.scores["accuracy"] >= 0.97 > nothing.scores["accuracy"]

"""Fit the head before anything is trained: logistic regression on the frozen encoder's embeddings.

With a few dozen examples a head that starts at random costs most of the steps there are. What
scikit-learn fits in a second is where all methods begin alike (a linear probe first, then
fine-tuning: Kumar et al. 2022, arXiv 2202.10054). The features are what the head's output layer
sees, of the bare encoder without dropout: the pooled embedding, or what the head's fresh
dense layer makes of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor, nn

from adapters.backbone import Backbone
from adapters.classifier import Classifier, Head
from adapters.text import Tokens
from training.data import Dataset
from training.loss import target_tensor
from training.scoring import predict

STEPS = 1000  # of the solver; it warns where they do not suffice


def fit_head(model: Classifier, backbone: Backbone, data: Dataset, rows: Sequence[Tokens]) -> None:
    """Set the output layer of `model.head` to what is fitted on `rows`; all else stays as it is.

    The features are standardised for the fit (L2 penalty of 1), and the weights scaled back.
    """
    head = model.head
    assert isinstance(head, Head), "a prompt's head is frozen: the recipe refuses head_first"
    features = _features(model, backbone, rows).double().numpy()  # [N, d]
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
    weights, biases = _fitted((features - mean) / spread, data)  # [C, d], [C]
    weights = weights / spread
    with torch.no_grad():
        head.out.weight.copy_(torch.from_numpy(weights))
        head.out.bias.copy_(torch.from_numpy(biases - weights @ mean))


def _features(model: Classifier, backbone: Backbone, rows: Sequence[Tokens]) -> Tensor:
    """What the output layer sees of each row, `[N, d]`, with no adapter in the encoder."""
    assert isinstance(model.head, Head)
    probe = Head(model.head.out.in_features, model.head.out.in_features, dense=False)
    probe.dense, probe.norm = model.head.dense, model.head.norm
    probe.out = nn.Identity()  # type: ignore[assignment]
    sites = nn.ModuleList(nn.Identity() for _ in model.sites)
    bare = Classifier(backbone, sites, probe, model.pooling)
    return predict(bare, rows)


def _fitted(features: np.ndarray, data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    labels = len(data.labels)
    targets = target_tensor(data.problem_type, data.targets, labels, torch.device("cpu")).numpy()
    if data.problem_type == "regression":
        ridge = Ridge(alpha=1.0).fit(features, targets)
        return ridge.coef_[None, :], np.array([ridge.intercept_])
    if data.problem_type == "multi_label_classification":
        parts = [_logistic(features, targets[:, label], 2) for label in range(labels)]
        return (
            np.stack([weights[1] - weights[0] for weights, _ in parts]),
            np.array([biases[1] - biases[0] for _, biases in parts]),
        )
    return _logistic(features, targets, labels)


def _logistic(
    features: np.ndarray, targets: np.ndarray, labels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights `[labels, d]` and biases `[labels]`; a label that no row has gets a rare one's."""
    weights, biases = np.zeros((labels, features.shape[1])), np.full(labels, -np.log(len(targets)))
    there = np.unique(targets).astype(int)
    if len(there) == 1:
        biases[there] = 0.0
        return weights, biases
    found = LogisticRegression(C=1.0, max_iter=STEPS).fit(features, targets)
    if len(there) == 2:  # scikit-learn gives the second label's logit alone: half of it to each
        weights[there] = np.outer([-0.5, 0.5], found.coef_[0])
        biases[there] = np.array([-0.5, 0.5]) * found.intercept_[0]
    else:
        weights[there], biases[there] = found.coef_, found.intercept_
    return weights, biases

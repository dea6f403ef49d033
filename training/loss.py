"""The two parts of AdaMix's loss: the task's own, and the consistency of two random routes (paper,
section 3.2)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.spec import ProblemType


def target_tensor(
    problem_type: ProblemType, targets: list[Any], labels: int, device: torch.device
) -> Tensor:
    """A mini-batch of `Dataset.targets` as the loss takes it: `[B]` indices or numbers, `[B, C]`
    zeros and ones."""
    if problem_type == "single_label_classification":
        return torch.tensor(targets, dtype=torch.long, device=device)
    if problem_type == "regression":
        return torch.tensor(targets, dtype=torch.float32, device=device)
    hot = torch.zeros(len(targets), labels)
    for i, indices in enumerate(targets):
        hot[i, indices] = 1.0
    return hot.to(device)


def task_loss(problem_type: ProblemType, logits: Tensor, target: Tensor) -> Tensor:
    """Mean over the mini-batch; `logits` is `[B, C]`."""
    logits = logits.float()
    if problem_type == "single_label_classification":
        return F.cross_entropy(logits, target)
    if problem_type == "regression":
        return F.mse_loss(logits.squeeze(-1), target)
    return F.binary_cross_entropy_with_logits(logits, target)


def consistency_loss(problem_type: ProblemType, first: Tensor, second: Tensor) -> Tensor:
    """½(KL(p‖q) + KL(q‖p)), each side detached as a target, summed over the mini-batch.

    Multi-label: the same over every label's own Bernoulli. Regression: the squared difference,
    symmetric likewise.
    """
    first, second = first.float(), second.float()
    if problem_type == "regression":
        return 0.5 * (
            (first - second.detach()).square().sum() + (second - first.detach()).square().sum()
        )
    if problem_type == "multi_label_classification":
        first, second = (torch.stack([x, torch.zeros_like(x)], dim=-1) for x in (first, second))
    p, q = F.log_softmax(first, dim=-1), F.log_softmax(second, dim=-1)
    return 0.5 * (_divergence(p, q.detach()) + _divergence(q, p.detach()))


def _divergence(log_prediction: Tensor, log_target: Tensor) -> Tensor:
    return F.kl_div(log_prediction, log_target, reduction="sum", log_target=True)

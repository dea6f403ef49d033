"""The two parts of AdaMix's loss: the task's own, and the consistency of two random routes (paper,
section 3.2).

Sources. The paper (arXiv 2205.12410) adds ½(KL(p‖q) + KL(q‖p)) of the two passes to the first
pass's cross entropy. Its released code takes `F.kl_div(..., reduction="batchmean")` with each side
detached in turn and weight 1: a mean over the mini-batch, as the cross entropy is. For one logit
(regression) its term is zero; here it is the squared difference. R-Drop (Liang et al. 2021, arXiv
2106.14448; its README has `0.5 * (ce(logits) + ce(logits2)) + α * kl`) and THOR (Zuo et al. 2022,
arXiv 2110.04260) put the task's loss on both passes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.spec import ProblemType
from training.config import Recipe


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


def step_loss(
    problem_type: ProblemType, passes: list[Tensor], target: Tensor, recipe: Recipe
) -> Tensor:
    """The loss of a step's one or two passes, their logits `[B, C]` each: a mean over the rows."""
    first, *second = passes
    loss = task_loss(problem_type, first, target)
    if not second:
        return loss
    if recipe.task_loss == "both":
        loss = 0.5 * (loss + task_loss(problem_type, second[0], target))
    return loss + recipe.consistency_weight * consistency_loss(problem_type, first, second[0])


def consistency_loss(problem_type: ProblemType, first: Tensor, second: Tensor) -> Tensor:
    """½(KL(p‖q) + KL(q‖p)), each side detached as a target, as the mean over the mini-batch's rows;
    `first` and `second` are logits `[B, C]`.

    Multi-label: a row's is the sum over its labels' own Bernoullis. Regression: the squared
    difference, symmetric likewise.
    """
    first, second = first.float(), second.float()
    if problem_type == "regression":
        return 0.5 * (F.mse_loss(first, second.detach()) + F.mse_loss(second, first.detach()))
    if problem_type == "multi_label_classification":
        first, second = (torch.stack([x, torch.zeros_like(x)], dim=-1) for x in (first, second))
    p, q = F.log_softmax(first, dim=-1), F.log_softmax(second, dim=-1)
    return 0.5 * (_divergence(p, q.detach()) + _divergence(q, p.detach()))


def _divergence(log_prediction: Tensor, log_target: Tensor) -> Tensor:
    return F.kl_div(log_prediction, log_target, reduction="batchmean", log_target=True)

"""AdaMix's loss: the task's own, and the consistency of two random routes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from training.loss import consistency_loss, target_tensor, task_loss

PROBLEMS = ["single_label_classification", "multi_label_classification", "regression"]
CPU = torch.device("cpu")


def logits(problem: str, seed: int, rows: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 1 if problem == "regression" else 3, generator=generator) * 2


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def softmax(row: list[float]) -> list[float]:
    return [math.exp(x) / sum(map(math.exp, row)) for x in row]


def expected_consistency(problem: str, first: Tensor, second: Tensor) -> float:
    """½(KL(p‖q) + KL(q‖p)) as the mean over the rows, by the definition and in Python's numbers."""
    total = 0.0
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        if problem == "regression":
            total += (a[0] - b[0]) ** 2
        elif problem == "single_label_classification":
            total += (kl(softmax(a), softmax(b)) + kl(softmax(b), softmax(a))) / 2
        else:
            for x, y in zip(a, b, strict=True):
                total += (
                    kl(softmax([x, 0]), softmax([y, 0])) + kl(softmax([y, 0]), softmax([x, 0]))
                ) / 2
    return total / len(first)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_consistency_is_the_definition(problem: str) -> None:
    """The consistency loss is the definition's symmetric divergence, as the mean over the batch."""
    first, second = logits(problem, 1), logits(problem, 2)
    assert consistency_loss(problem, first, second).item() == pytest.approx(
        expected_consistency(problem, first, second), rel=1e-5
    )


@pytest.mark.parametrize("problem", PROBLEMS)
def test_consistency_is_symmetric_and_zero_at_agreement(problem: str) -> None:
    """Two routes may change places, and where they agree there is no loss."""
    first, second = logits(problem, 1), logits(problem, 2)
    torch.testing.assert_close(
        consistency_loss(problem, first, second), consistency_loss(problem, second, first)
    )
    assert consistency_loss(problem, first, first.clone()).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_gradients_of_consistency(problem: str) -> None:
    """Each side is a fixed target for the other: the gradient is that of half the divergence
    towards it alone."""
    first, second = logits(problem, 1).requires_grad_(), logits(problem, 2).requires_grad_()
    consistency_loss(problem, first, second).backward()
    if problem == "regression":
        towards = first - second
    else:
        squash = (
            torch.sigmoid
            if problem == "multi_label_classification"
            else lambda x: torch.softmax(x, -1)
        )
        towards = (squash(first) - squash(second)) / 2
    torch.testing.assert_close(first.grad, towards.detach() / len(first))
    torch.testing.assert_close(second.grad, -towards.detach() / len(first))


def test_consistency_of_extreme_logits() -> None:
    """Logits far beyond a probability's range give a finite loss, in bfloat16 too."""
    first, second = torch.tensor([[300.0, -300.0]]), torch.tensor([[-300.0, 300.0]])
    for dtype in (torch.float32, torch.bfloat16):
        for problem in PROBLEMS[:2]:
            assert consistency_loss(problem, first.to(dtype), second.to(dtype)).isfinite()


def test_task_losses() -> None:
    """The task's loss is the batch's mean cross entropy, binary cross entropy or squared error."""
    x = torch.tensor([[1.0, 2.0], [0.5, -1.0]])
    single = task_loss(
        "single_label_classification",
        x,
        target_tensor("single_label_classification", [1, 0], 2, CPU),
    )
    assert single.item() == pytest.approx(
        (math.log(1 + math.e**-1) + math.log(1 + math.e**-1.5)) / 2
    )
    hot = target_tensor("multi_label_classification", [[0, 1], []], 2, CPU)
    assert hot.tolist() == [[1.0, 1.0], [0.0, 0.0]]
    sigmoid = [math.log(1 + math.exp(-v)) for v in (1.0, 2.0, -0.5, 1.0)]
    assert task_loss("multi_label_classification", x, hot).item() == pytest.approx(sum(sigmoid) / 4)
    target = target_tensor("regression", [2, -0.5], 1, CPU)
    assert task_loss("regression", x[:, :1], target).item() == pytest.approx((1 + 1) / 2)

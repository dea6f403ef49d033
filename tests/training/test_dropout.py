"""Dropout on a CPU, through torch's own functions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.dropout import CpuDropout


def dropped(x: Tensor, seed: int = 0, step: int = 0, p: float = 0.1) -> Tensor:
    with CpuDropout(seed) as dropout:
        dropout.begin(step)
        return F.dropout(x, p, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_a_share_goes_and_the_rest_grows(dtype: torch.dtype, p: float) -> None:
    """A share p of the elements becomes 0 and the others are divided by 1 - p."""
    result = dropped(torch.ones(401, 251, dtype=dtype), p=p)
    assert set(result.flatten().tolist()) == {0.0, torch.tensor(1 / (1 - p), dtype=dtype).item()}
    assert (result == 0).float().mean().item() == pytest.approx(p, abs=0.005)


def test_gradients_pass_where_values_pass() -> None:
    """The gradient is 0 exactly where the element was dropped."""
    x = torch.ones(1000, requires_grad=True)
    result = dropped(x)
    result.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    assert x.grad is not None
    assert torch.equal(x.grad, result.detach())


def test_seed_and_step_decide() -> None:
    """The same seed and step draw the same, another seed or step something else."""
    x = torch.ones(1000)
    assert torch.equal(dropped(x, 1, 2), dropped(x, 1, 2))
    assert not torch.equal(dropped(x, 1, 2), dropped(x, 1, 3))
    assert not torch.equal(dropped(x, 1, 2), dropped(x, 2, 2))


def test_modules_in_eval_mode_drop_nothing() -> None:
    """`nn.Dropout` goes through it in training mode only."""
    layer, x = nn.Dropout(0.3), torch.ones(1000)
    with CpuDropout(0):
        assert (layer(x) == 0).any()
        assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize("boolean", [True, False])
def test_attention_is_torchs_on_average(boolean: bool) -> None:
    """Over many draws, attention with dropout averages to torch's attention without, hidden keys
    left out."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 8) for _ in range(3))
    seen = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    seen[0, :, :, 3:] = False
    mask = seen if boolean else torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
    with CpuDropout(0):
        draws = [
            F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=0.1)
            for _ in range(2000)
        ]
    assert not torch.equal(draws[0], draws[1])
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(torch.stack(draws).mean(0), expected, atol=0.05, rtol=0)


def test_attention_without_dropout_is_torchs() -> None:
    """Without dropout attention is left to torch, to the bit."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 8) for _ in range(3))
    with CpuDropout(0):
        result = F.scaled_dot_product_attention(query, key, value)
    assert torch.equal(result, F.scaled_dot_product_attention(query, key, value))

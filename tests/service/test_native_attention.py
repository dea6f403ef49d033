"""The native kernels' attention against torch's in float64: rows and heads of any size in one
batch, each row's numbers its own to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from service.engine.native.library import Library
from service.engine.packed import Packed
from tests.service.conftest import threads

LENGTHS = (1, 2, 15, 300, 16, 17, 47, 48, 49, 63, 64, 65)
HEADS = 3


def packed(lengths: Sequence[int]) -> Packed:
    """Rows of those lengths; of the batch, attention takes the bounds alone."""
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    none = torch.empty(0, dtype=torch.long)
    return Packed(
        tokens=sum(lengths),
        blocks=[],
        ids=none,
        types=none,
        positions=none,
        starts=bounds[:-1].long(),
        lengths=torch.tensor(lengths),
        bounds=bounds,
        longest=max(lengths),
        groups=(),
        masks=None,
    )


def wanted(qkv: Tensor, lengths: Sequence[int], window: int | None) -> Tensor:
    """torch's, row by row, in float64."""
    rows = []
    for row in qkv.double().split(list(lengths)):
        q, k, v = row.view(len(row), 3, HEADS, -1).permute(1, 2, 0, 3)
        place = torch.arange(len(row))
        seen = (place[:, None] - place).abs() <= (len(row) if window is None else window)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        rows.append(attended.transpose(0, 1).reshape(len(row), -1))
    return torch.cat(rows)


def qkv_of(tokens: int, size: int) -> Tensor:
    return torch.randn(tokens, 3 * HEADS * size) * 1.5


@pytest.mark.parametrize("window", [None, 1, 3, 64])
@pytest.mark.parametrize("size", [8, 20, 32, 64])
def test_attention(size: int, window: int | None, library: Library) -> None:
    """Rows of any lengths in one batch have float64's attention, and are to the bit the same with
    any number of threads."""
    qkv, batch = qkv_of(sum(LENGTHS), size), packed(LENGTHS)
    found = library.attention(qkv, batch, HEADS, window=window)
    torch.testing.assert_close(
        found, wanted(qkv, LENGTHS, window), rtol=1e-5, atol=1e-5, check_dtype=False
    )
    for number in (2, 3):
        with threads(number):
            again = library.attention(qkv, batch, HEADS, window=window)
            assert torch.equal(again, found), number


@pytest.mark.parametrize("window", [None, 3, 64])
@pytest.mark.parametrize("size", [20, 32])
def test_a_row_is_its_own(size: int, window: int | None, library: Library) -> None:
    """A row's attention is to the bit what it is alone."""
    qkv, batch = qkv_of(sum(LENGTHS), size), packed(LENGTHS)
    found = library.attention(qkv, batch, HEADS, window=window)
    for length, (start, end) in zip(LENGTHS, pairwise(batch.bounds.tolist()), strict=True):
        alone = library.attention(qkv[start:end], packed([length]), HEADS, window=window)
        assert torch.equal(alone, found[start:end]), length


def test_spare_tokens(library: Library) -> None:
    """Tokens that belong to no row get 0, and nobody sees them."""
    qkv, batch = qkv_of(12, 8), packed([3, 4])
    qkv[7:] = torch.nan
    found = library.attention(qkv, batch, HEADS)
    assert torch.equal(found[7:], torch.zeros(5, HEADS * 8))
    assert torch.equal(found[:7], library.attention(qkv[:7], batch, HEADS))


def test_large_scores(library: Library) -> None:
    """Scores near the largest numbers do not overflow: equal ones give the mean of the values, one
    that is far above the others gives its value, one that is far below gives none of it."""
    length, size = 40, 20
    qkv = qkv_of(length, size)
    q, k, v = qkv.view(length, 3, HEADS, size).unbind(1)
    q[:], k[:] = 1e18, 1e18
    mean = v.double().mean(dim=0).expand(length, HEADS, size)
    found = library.attention(qkv, packed([length]), HEADS).view(length, HEADS, size)
    torch.testing.assert_close(found, mean, rtol=1e-5, atol=1e-5, check_dtype=False)
    k[7] = 2e18
    found = library.attention(qkv, packed([length]), HEADS).view(length, HEADS, size)
    assert torch.equal(found, v[7].expand(length, HEADS, size))
    k[7] = -1e18
    others = torch.cat([v[:7], v[8:]]).double().mean(dim=0).expand(length, HEADS, size)
    found = library.attention(qkv, packed([length]), HEADS).view(length, HEADS, size)
    torch.testing.assert_close(found, others, rtol=1e-5, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("which", ["query", "key", "value"])
def test_what_is_not_finite(which: str, bad: float, library: Library) -> None:
    """A number that is not finite gives nothing finite wherever torch's attention does not, and
    other rows what they have without it."""
    qkv, batch = qkv_of(40, 8), packed([17, 5, 18])
    before = library.attention(qkv, batch, HEADS)
    qkv[19, ["query", "key", "value"].index(which) * HEADS * 8] = bad
    found = library.attention(qkv, batch, HEADS)
    spoilt = ~wanted(qkv, [17, 5, 18], None).isfinite()
    assert spoilt.any()
    assert not found[spoilt].isfinite().any()
    assert torch.equal(found[:17], before[:17])
    assert torch.equal(found[22:], before[22:])

"""Scaled dot-product attention of every row with itself, over rows laid end to end: `[T, 3d]` →
`[T, d]`.

All tokens of a row see each other, or with a window those on either side. What a score gains by the
distance of its tokens is in `service.engine.positions`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from service.engine.packed import Group, Packed

Attention = Callable[..., Tensor]
"""Queries, keys and values side by side, the batch, the number of heads; by name `window` for a
layer that has one. What it gives for tokens that belong to no row is arbitrary."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of rows of one length: queries, keys and values `[n, H, L, D]` → `[n, H, L, D]`."""

# A row's attention with a window goes by so many queries at a time. Each block sees the keys of its
# own tokens and of a window on either side, so a long row costs in proportion to its length.
BLOCK = 128


def attention_for(device: torch.device, dtype: torch.dtype) -> Attention:
    """The fastest that the device has. Flash attention needs a GPU and half precision."""
    return (
        by_bounds
        if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
        else by_groups
    )


def by_groups(
    qkv: Tensor,
    batch: Packed,
    heads: int,
    *,
    window: int | None = None,
    attend: Attend = F.scaled_dot_product_attention,
) -> Tensor:
    """One call per row length: nothing is padded, and rows of one length share a call."""
    width = qkv.shape[1] // 3
    out = qkv.new_empty(qkv.shape[0], width)
    out[batch.tokens :] = 0
    for group in batch.groups:
        # [n·L, 3d] → 3 × [n, H, L, D]
        shape = (group.rows, group.length, 3, heads, width // heads)
        q, k, v = qkv[group.tokens].view(shape).permute(2, 0, 3, 1, 4)
        # a row that is no longer than the window sees all of itself
        if window is not None and group.length > window + 1:
            attended = _within(window, q, k, v)
        else:
            attended = attend(q, k, v)
        out[group.tokens] = attended.transpose(1, 2).reshape(-1, width)
    return out


def by_bounds(qkv: Tensor, batch: Packed, heads: int, *, window: int | None = None) -> Tensor:
    """All rows in one call of flash attention for variable lengths (torch.nn.attention.varlen)."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = qkv.view(len(qkv), 3, heads, -1).unbind(1)  # 3 × [T, H, D]
    sides = (-1, -1) if window is None else (window, window)
    attended = varlen_attn(
        q, k, v, batch.bounds, batch.bounds, batch.longest, batch.longest, window_size=sides
    )
    assert isinstance(attended, Tensor), "a tuple is returned only on request"
    return attended.reshape(len(qkv), -1)


def _within(window: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of each token with those at most `window` away."""
    length = q.shape[2]
    out = torch.empty_like(q)
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        first, last = max(0, start - window), min(length, end + window)
        mask = _band(end - start, last - first, start - first, window, q.device)
        out[:, :, start:end] = F.scaled_dot_product_attention(
            q[:, :, start:end], k[:, :, first:last], v[:, :, first:last], attn_mask=mask
        )
    return out


def _band(queries: int, keys: int, before: int, window: int, device: torch.device) -> Tensor:
    """`[queries, keys]`: which keys are near enough; `before` keys stand before the first
    query."""
    query = torch.arange(before, before + queries, device=device)
    key = torch.arange(keys, device=device)
    return (query[:, None] - key).abs() <= window


def groups_of(lengths: list[int], index: Callable[[list[int]], Tensor]) -> tuple[Group, ...]:
    """The rows grouped by length; `index` copies token indices to the device."""
    rows_of: dict[int, list[int]] = defaultdict(list)
    starts = [0]
    for row, length in enumerate(lengths):
        rows_of[length].append(row)
        starts.append(starts[-1] + length)
    groups = []
    for length, rows in rows_of.items():
        if rows[-1] - rows[0] == len(rows) - 1:
            start = starts[rows[0]]
            groups.append(Group(len(rows), length, slice(start, start + len(rows) * length)))
        else:
            places = [place for row in rows for place in range(starts[row], starts[row] + length)]
            groups.append(Group(len(rows), length, index(places)))
    return tuple(groups)

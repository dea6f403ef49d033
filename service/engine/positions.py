"""What attention makes of the tokens' positions: rotary ones, a bias by distance, and disentangled
ones (`service.engine.architecture` says what each is)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from service.engine.architecture import (
    AttentionPositions,
    DisentangledPositions,
    RelativePositions,
    RotaryPositions,
)

# Numbers of a score's two position terms that are computed at once: 8 MB of float32 stay in a
# processor's cache.
AT_ONCE = 1 << 20


def computed(
    positions: AttentionPositions,
    size: int,
    longest: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Rotary | Relative | Disentangled:
    """What computes them, for heads of `size` numbers and rows of up to `longest` tokens."""
    if isinstance(positions, RotaryPositions):
        return Rotary(positions, size, longest, device)
    if isinstance(positions, RelativePositions):
        return Relative(positions, longest, device, dtype)
    return Disentangled(positions, device, dtype)


class Rotary:
    """Rotates queries and keys as transformers does it: `models/modernbert/modeling_modernbert.py`
    of 5.23, `apply_rotary_pos_emb`."""

    def __init__(
        self, positions: RotaryPositions, size: int, longest: int, device: torch.device
    ) -> None:
        exponents = torch.arange(0, size, 2, dtype=torch.float) / size
        angles = torch.arange(longest)[:, None] / positions.theta**exponents
        # [longest, D/2], in float32 whatever the layers compute in
        self._cos, self._sin = angles.cos().to(device), angles.sin().to(device)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self._cos, self._sin

    def __call__(self, qkv: Tensor, positions: Tensor, heads: int) -> None:
        """Rotates the queries and keys of `qkv`, `[T, 3d]`, in place; `positions` are `[T]`."""
        cos, sin = self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)
        # [T, 2H, D]: queries and keys
        both = qkv.view(len(qkv), 3 * heads, -1)[:, : 2 * heads]
        first, second = both.chunk(2, dim=-1)
        turned = first * cos - second * sin
        second.copy_(second * cos + first * sin)
        first.copy_(turned)


class Relative:
    """Attention of rows of one length whose scores have a bias by distance."""

    def __init__(
        self, positions: RelativePositions, longest: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        places = torch.arange(longest)
        distances = places[None, :] - places[:, None] + positions.biases.shape[1] // 2
        # [H, longest, longest]: a shorter row takes a corner
        self._biases = positions.biases.detach()[:, distances].to(device, dtype)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self._biases,)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length = q.shape[2]
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=self._biases[None, :, :length, :length]
        )


class Disentangled:
    """Attention of rows of one length whose scores have products with the distance's key and
    query.

    transformers (5.23, `models/deberta_v2/modeling_deberta_v2.py`, `disentangled_attention_bias`)
    projects the distances anew in every pass, multiplies by all of them and gathers. Here the
    projections are given, only the row's distances are taken, and the products are read along
    their diagonals, as a view: the score of query i and key j stands in row i, j - i places from
    the middle.
    """

    def __init__(
        self, positions: DisentangledPositions, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._rows = positions.rows.to(device)
        self._products = positions.products
        self._keys, self._queries = (
            None if each is None else self._scaled(each).to(device, dtype)
            for each in (positions.keys, positions.queries)
        )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        found = (self._rows, self._keys, self._queries)
        return tuple(each for each in found if each is not None)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        _, heads, length, size = q.shape
        middle = len(self._rows) // 2
        rows = self._rows[middle - length + 1 : middle + length]  # [2L - 1]
        keys = None if self._keys is None else self._keys[:, rows]
        queries = None if self._queries is None else self._queries[:, rows.flip(0)]
        step = max(1, AT_ONCE // (2 * heads * length * length))
        parts = zip(*(torch.split(each, step) for each in (q, k, v)), strict=True)
        attended = [
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=_biases(q, k, keys, queries), scale=self._scale(size)
            )
            for q, k, v in parts
        ]
        return attended[0] if len(attended) == 1 else torch.cat(attended)

    def _scaled(self, products: Tensor) -> Tensor:
        return products.detach() * self._scale(products.shape[-1])

    def _scale(self, size: int) -> float:
        return float((size * self._products) ** -0.5)


def _biases(q: Tensor, k: Tensor, keys: Tensor | None, queries: Tensor | None) -> Tensor:
    """What the scores `[n, H, L, L]` gain. `keys` are `[H, 2L - 1, D]`, from the key farthest
    before the query on; `queries` the same in the other direction."""
    biases = None if keys is None else _by_distance(q, keys)
    if queries is not None:
        by_key = _by_distance(k, queries).mT
        biases = by_key if biases is None else biases + by_key
    assert biases is not None, "a family without both has no such positions"
    return biases


def _by_distance(x: Tensor, distances: Tensor) -> Tensor:
    """`x` is `[n, H, L, D]`, `distances` `[H, 2L - 1, D]` → `[n, H, L, L]`: of tokens i and j the
    product of x at i with the distance number j - i + L - 1. A view of the product."""
    n, heads, length, _ = x.shape
    every = 2 * length - 1
    # [H, n·L, D] · [H, D, 2L - 1]
    product = torch.bmm(x.transpose(0, 1).flatten(1, 2), distances.mT)
    return product.as_strided(
        (n, heads, length, length),
        (length * every, n * length * every, every - 1, 1),
        length - 1,
    )

"""Dropout for training on a CPU, where torch's own takes a sixth of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class CpuDropout(TorchFunctionMode):
    """Within the context, `F.dropout` (which `nn.Dropout` calls) and attention with dropout draw
    from a faster generator.

    torch draws a number at a time, on one thread, and its attention with dropout computes in
    float32 whatever it is given; SFC64 fills 64 bits at a time, of which an element takes 16: `p`
    is exact to 1/65,536. What is drawn follows from the seed and the number of the step alone, so
    that a run goes on from a checkpoint to the bit.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self.begin(0)

    def begin(self, step: int) -> None:
        """Draw for this step from here on."""
        self._bits = np.random.SFC64([self._seed, step])

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.dropout:
            return self._dropout(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _dropout(
        self,
        x: Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,  # noqa: ARG002  # part of the signature; the result is all that counts
    ) -> Tensor:
        return x * self._kept(x, p) if training and p else x

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> Tensor:
        """`query`, `key` and `value` are `[B, H, T, D]`, the mask `[B, 1, T, T]`: true, or 0, where
        a key is to be seen."""
        assert not is_causal  # an encoder's never is
        if not dropout_p:
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=attn_mask, scale=scale
            )
        # [B, H, T, T]
        scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(
            -1, -2
        )
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
        elif attn_mask is not None:
            scores = scores + attn_mask
        shares = torch.softmax(scores, dim=-1).to(value.dtype)
        return self._dropout(shares, dropout_p) @ value

    def _kept(self, x: Tensor, p: float) -> Tensor:
        """1/(1 - p) where an element stays, 0 where it goes."""
        # four elements to a number
        drawn = self._bits.random_raw(-(-x.numel() // 4)).view(np.int16)
        kept = torch.from_numpy(drawn)[: x.numel()].view(x.shape) >= round(p * 2**16) - 2**15
        return kept.to(x.dtype).mul_(1 / (1 - p))

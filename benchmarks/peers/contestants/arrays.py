"""A batch as NumPy arrays, by the tokenizers library alone: what takes arrays is spared
transformers' tokeniser, which costs several times as much."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from worker import max_length

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Arrays:
    """`[rows, longest row]` of int64, by the names of BERT's inputs."""

    def __init__(self, model: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        pad = self._tokenizer.token_to_id("[PAD]")
        self._tokenizer.enable_padding(pad_id=pad, pad_token="[PAD]")
        self._tokenizer.enable_truncation(max_length(model))

    def __call__(self, texts: list[list[str]]) -> dict[str, NDArray[np.int64]]:
        rows = self._tokenizer.encode_batch([tuple(t) if len(t) > 1 else t[0] for t in texts])
        columns = (
            [row.ids for row in rows],
            [row.attention_mask for row in rows],
            [row.type_ids for row in rows],
        )
        return {
            name: np.array(column, np.int64) for name, column in zip(INPUTS, columns, strict=True)
        }

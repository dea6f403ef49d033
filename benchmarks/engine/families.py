"""The packed engine against transformers' padded models, for each family of encoders, at mixed
lengths on a CPU: random weights of base size, float32, no adapters.

    python -m benchmarks.engine.families --out benchmarks/results/families.json

Both sides compute the last hidden states of the same rows. transformers gets them padded to the
longest of the batch, with its fastest attention (SDPA; DeBERTa and MPNet have only their own). The
rows are in the order in which they came, as a server gets them.

The unit is the processor time of the one thread that computes, so that another program on the
machine does not count, except for the cache that it takes. In each round every family has its turn,
one batch a side, and the sides change places. A ratio is of the two batches of one turn; its median
and range are written. The file is written after each round, so a run that is ended early has as
many of each.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models

from adapters.backbone import Backbone
from adapters.families.registry import family_of
from service.engine.encoder import PackedEncoder
from training.hardware import hardware

Run = Callable[[], torch.Tensor]

CPU = torch.device("cpu")
BASE: dict[str, Any] = {
    "bert": transformers.BertConfig(),
    "distilbert": transformers.DistilBertConfig(),
    "mpnet": transformers.MPNetConfig(max_position_embeddings=514),
    "modernbert": transformers.ModernBertConfig(),
    # microsoft/deberta-v3-base
    "deberta-v2": transformers.DebertaV2Config(
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        relative_attention=True,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
    ),
}
NEAR = 1e-3  # of hidden states


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--families", nargs="+", choices=BASE, default=list(BASE))
    options.add_argument("--rows", type=int, default=8, help="of a batch")
    options.add_argument("--longest", type=int, default=256, help="tokens of the longest row")
    options.add_argument("--rounds", type=int, default=11)
    options.add_argument("--out", type=Path, required=True)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    lengths = mixed(chosen.rows, chosen.longest)
    contests = {family: Contest(family, lengths) for family in chosen.families}
    result = {
        "command": shlex.join(["python", "-m", "benchmarks.engine.families", *sys.argv[1:]]),
        "hardware": hardware(CPU),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "lengths": lengths,
        "tokens": sum(lengths),
        "padded_tokens": max(lengths) * len(lengths),
    }
    for done in range(1, chosen.rounds + 1):
        for contest in contests.values():
            contest.turn(ours_first=done % 2 == 1)
        found = {family: contest.found() for family, contest in contests.items()}
        whole = {**result, "rounds": done, "families": found}
        chosen.out.write_text(json.dumps(whole, indent=2) + "\n")


def mixed(rows: int, longest: int) -> list[int]:
    """Lengths spread evenly over the logarithm from 8 tokens to the longest, in random order: most
    texts are short."""
    steps = max(1, rows - 1)
    lengths = [round(8 * (longest / 8) ** (i / steps)) for i in range(rows)]
    random.Random(0).shuffle(lengths)
    return lengths


class Contest:
    """Both sides of one family, and the processor time of each of their batches."""

    def __init__(self, family: str, lengths: list[int]) -> None:
        """Both sides have run once, and agree, when this is done."""
        self._ours, self._theirs, self._attention = sides(family, lengths)
        check(self._ours(), self._theirs(), lengths)
        self._times: list[tuple[float, float]] = []  # milliseconds: ours, theirs

    def turn(self, *, ours_first: bool) -> None:
        """One batch a side."""
        if ours_first:
            ours = milliseconds(self._ours)
            theirs = milliseconds(self._theirs)
        else:
            theirs = milliseconds(self._theirs)
            ours = milliseconds(self._ours)
        self._times.append((ours, theirs))

    def found(self) -> dict[str, Any]:
        """Milliseconds a batch of both sides, and how many times as fast ours is."""
        ours, theirs = zip(*self._times, strict=True)
        ratios = [b / a for a, b in self._times]
        return {
            "ours_ms": round(statistics.median(ours), 1),
            "transformers_ms": round(statistics.median(theirs), 1),
            "transformers_attention": self._attention,
            "times_as_fast": round(statistics.median(ratios), 2),
            "range": [round(min(ratios), 2), round(max(ratios), 2)],
        }


def milliseconds(run: Run) -> float:
    """Of this thread's processor time."""
    start = time.thread_time()
    run()
    return 1000 * (time.thread_time() - start)


def sides(family: str, lengths: list[int]) -> tuple[Run, Run, str]:
    """Ours gives `[tokens, d]`, transformers' `[rows, longest, d]`; and the name of transformers'
    attention."""
    torch.manual_seed(0)
    encoder = transformers.AutoModel.from_config(BASE[family]).eval().requires_grad_(False)
    family_of(encoder.config).prepare(encoder)
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    backbone = Backbone(family, encoder, tokenizer, "0" * 64, family in ("bert", "mpnet"), None)
    packed = PackedEncoder(backbone, CPU, torch.float32)
    rng = random.Random(1)
    rows = [[rng.randrange(1000, 20000) for _ in range(n)] for n in lengths]
    longest, padding = max(lengths), encoder.config.pad_token_id
    ids = torch.tensor([row + [padding] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * n + [0] * (longest - n) for n in lengths])

    @torch.inference_mode()
    def ours() -> torch.Tensor:
        return packed.forward(packed.pack([(row, [0] * len(row)) for row in rows]))

    @torch.inference_mode()
    def theirs() -> torch.Tensor:
        states: torch.Tensor = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return states

    return ours, theirs, encoder.config._attn_implementation


def check(ours: torch.Tensor, theirs: torch.Tensor, lengths: list[int]) -> None:
    """A fast wrong answer would be worth nothing."""
    for found, wanted, n in zip(ours.split(lengths), theirs, lengths, strict=True):
        torch.testing.assert_close(found, wanted[:n], rtol=NEAR, atol=NEAR)


if __name__ == "__main__":
    main()

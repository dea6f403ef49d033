"""The packed engine against transformers' padded models, for each family of encoders, at mixed
lengths on a CPU: random weights of base size, float32, no adapters.

    python -m benchmarks.engine.families --out benchmarks/results/families.json

Both sides compute the last hidden states of the same rows. transformers gets them padded to the
longest of the batch, with its fastest attention (SDPA; DeBERTa has only its own). The rows are in
the order in which they came, as a server gets them. Runs are interleaved; the ratio of each pair of
runs is taken, and its median and range are written.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
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
    options.add_argument("--rows", type=int, default=16, help="of a batch")
    options.add_argument("--longest", type=int, default=256, help="tokens of the longest row")
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--out", type=Path, required=True)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    lengths = mixed(chosen.rows, chosen.longest)
    result = {
        "command": "python -m benchmarks.engine.families",
        "hardware": hardware(CPU),
        "threads": chosen.threads,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "lengths": lengths,
        "repeats": chosen.repeats,
        "families": {
            family: compared(family, lengths, chosen.repeats) for family in chosen.families
        },
    }
    chosen.out.write_text(json.dumps(result, indent=2) + "\n")


def mixed(rows: int, longest: int) -> list[int]:
    """Lengths spread evenly over the logarithm from 8 tokens to the longest, in random order: most
    texts are short."""
    steps = max(1, rows - 1)
    lengths = [round(8 * (longest / 8) ** (i / steps)) for i in range(rows)]
    random.Random(0).shuffle(lengths)
    return lengths


def compared(family: str, lengths: list[int], repeats: int) -> dict[str, Any]:
    """Milliseconds a batch of both sides, and how many times as fast ours is."""
    ours, theirs = sides(family, lengths)
    check(ours(), theirs(), lengths)
    times: dict[str, list[float]] = {"ours": [], "transformers": []}
    for _ in range(repeats):
        for name, run in (("ours", ours), ("transformers", theirs)):
            start = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - start))
    ratios = [b / a for a, b in zip(*times.values(), strict=True)]
    return {
        **{f"{name}_ms": round(statistics.median(each), 1) for name, each in times.items()},
        "times_as_fast": round(statistics.median(ratios), 2),
        "range": [round(min(ratios), 2), round(max(ratios), 2)],
    }


Run = Callable[[], torch.Tensor]


def sides(family: str, lengths: list[int]) -> tuple[Run, Run]:
    """Ours gives `[tokens, d]`, transformers' `[rows, longest, d]`."""
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

    return ours, theirs


def check(ours: torch.Tensor, theirs: torch.Tensor, lengths: list[int]) -> None:
    """A fast wrong answer would be worth nothing."""
    for found, wanted, n in zip(ours.split(lengths), theirs, lengths, strict=True):
        torch.testing.assert_close(found, wanted[:n], rtol=NEAR, atol=NEAR)


if __name__ == "__main__":
    main()

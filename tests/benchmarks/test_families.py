"""The benchmark of the families, at a size that measures nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import transformers

from benchmarks.engine import families


def test_a_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each family has its turns against transformers, and the figures say how many, by what
    attention and of which lengths."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    tiny = {
        "bert": transformers.BertConfig(**sizes, intermediate_size=64),
        "mpnet": transformers.MPNetConfig(**sizes, intermediate_size=64),
    }
    out = tmp_path / "families.json"
    monkeypatch.setattr(families, "BASE", tiny)
    monkeypatch.setattr(
        sys,
        "argv",
        ["families", "--rows", "3", "--longest", "32", "--rounds", "2", "--out", str(out)],
    )
    families.main()
    found = json.loads(out.read_text())
    assert (found["rounds"], sorted(found["lengths"])) == (2, [8, 16, 32])
    assert (found["tokens"], found["padded_tokens"]) == (56, 96)
    assert [(name, one["transformers_attention"]) for name, one in found["families"].items()] == [
        ("bert", "sdpa"),
        ("mpnet", "eager"),
    ]
    for one in found["families"].values():
        low, high = one["range"]
        assert 0 < low <= one["times_as_fast"] <= high

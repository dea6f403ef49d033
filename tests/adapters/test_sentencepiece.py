"""Backbones whose tokeniser is a file of SentencePiece's: they split texts as it does, are the same
with a tokenizer.json, and are refused where it is damaged."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers.convert_slow_tokenizer import DebertaV2Converter

from adapters.backbone import load
from adapters.errors import BackboneError
from tests.sentence_pieces import LAYOUTS, piece_ids, pieces_backbone

# What a model's map of characters changes, and what it does not.
TEXTS = [
    "it is a good film, the plot was awful.",
    "a  good   film ",
    "wait…",
    "a\u00a0good\u2003film",
    "ﬁlm Ｆｉｌｍ ｆｉｌｍ",
    "not\tvery\ngood",
    "naïve nai\u0308ve",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        family: pieces_backbone(tmp_path_factory.mktemp("backbone"), family) for family in LAYOUTS
    }


@pytest.mark.parametrize("family", LAYOUTS)
def test_pieces(folders: dict[str, Path], family: str) -> None:
    """A text's ids are those of SentencePiece itself, in transformers' order, between the special
    tokens."""
    backbone = load(str(folders[family]))
    for text in TEXTS:
        _, *found, _ = backbone.tokenizer.encode(text).ids
        assert found == piece_ids(folders[family], family, text), text
    assert backbone.mask_token in ("[MASK]", "<mask>")


def test_a_tokenizer_json_of_transformers_4(folders: dict[str, Path], tmp_path: Path) -> None:
    """The tokenizer.json that transformers 4 made of DeBERTa's SentencePiece model, with its map of
    characters, is the same tokeniser."""
    folder = Path(shutil.copytree(folders["deberta-v2"], tmp_path / "copy"))
    slow = SimpleNamespace(
        vocab_file=str(folder / "spm.model"),
        vocab_type="spm",
        do_lower_case=False,
        split_by_punct=False,
        convert_tokens_to_ids={"[CLS]": 1, "[SEP]": 2}.get,
    )
    made = DebertaV2Converter(slow).converted()
    made.add_special_tokens(["[MASK]"])
    made.save(str(folder / "tokenizer.json"))
    (folder / "spm.model").unlink()
    first, second = load(str(folders["deberta-v2"])), load(str(folder))
    assert second.fingerprint == first.fingerprint
    assert second.reference.settings == first.reference.settings


@pytest.mark.parametrize("family", LAYOUTS)
def test_a_damaged_model(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    """A SentencePiece model that cannot be read is refused with one sentence."""
    folder = Path(shutil.copytree(folders[family], tmp_path / "copy"))
    (folder / LAYOUTS[family].file).write_bytes(b"nonsense")
    with pytest.raises(
        BackboneError, match="its only tokeniser, SentencePiece's model, is damaged, or"
    ) as caught:
        load(str(folder))
    assert "\n" not in str(caught.value)

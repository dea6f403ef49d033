"""Backbones whose only tokeniser is a file of SentencePiece's, as DeBERTa-v3 and XLM-R are
released."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import sentencepiece
from sentencepiece import SentencePieceProcessor

from tests.tiny import WORDS, tiny_masked_lm


class Layout(NamedTuple):
    """Where transformers puts a model's pieces in a family's vocabulary."""

    file: str
    options: dict[str, object]  # of the training
    shift: int  # of a piece's id
    unknown: int  # the id of the unknown token
    more: int  # tokens that the model lacks


_DEBERTA = {
    "pad_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "unk_id": 3,
    "pad_piece": "[PAD]",
    "bos_piece": "[CLS]",
    "eos_piece": "[SEP]",
    "unk_piece": "[UNK]",
}
LAYOUTS = {
    "deberta-v2": Layout("spm.model", _DEBERTA, shift=0, unknown=3, more=1),
    "xlm-roberta": Layout("sentencepiece.bpe.model", {}, shift=1, unknown=3, more=2),
    "camembert": Layout("sentencepiece.bpe.model", {}, shift=4, unknown=3, more=5),
}


def pieces_backbone(folder: Path, family: str) -> Path:
    """Write a random encoder of `family` with its masked-language-model head to `folder`, and a
    SentencePiece model of the test's words as its tokeniser."""
    layout = LAYOUTS[family]
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS[i:] + WORDS[:i]) + "." for i in range(len(WORDS))]),
        model_writer=trained,
        vocab_size=60,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **layout.options,
    )
    size = SentencePieceProcessor(model_proto=trained.getvalue()).get_piece_size()
    tiny_masked_lm(folder, family, vocab_size=size + layout.more)
    for path in folder.glob("token*"):
        path.unlink()
    (folder / layout.file).write_bytes(trained.getvalue())
    return folder


def piece_ids(folder: Path, family: str, text: str) -> list[int]:
    """What SentencePiece itself makes of a text, by transformers' numbers."""
    layout = LAYOUTS[family]
    processor = SentencePieceProcessor(model_file=str(folder / layout.file))
    unknown = processor.unk_id()
    return [layout.unknown if i == unknown else i + layout.shift for i in processor.encode(text)]

"""The probe of an adapter's file: a few texts with the logits that a server must get too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adapters.backbone import Backbone
from adapters.classifier import Classifier
from adapters.convert.probe import neutral_probe, read_probe
from adapters.spec import Probe
from adapters.text import TextInput, encode
from training.errors import TrainingError
from training.scoring import predict

MAX_CHARACTERS = 64_000  # of all texts: a file's header holds a million bytes


def probe_texts(file: Path | None, text_pair: bool) -> tuple[TextInput, ...]:
    """The first rows of `file`, JSON lines. Without one, neutral sentences: an adapter's file is
    passed on, and must not give away texts of the data. Raises TrainingError, CannotConvert or
    InvalidText."""
    if file is None:
        return neutral_probe(text_pair)
    try:
        texts = read_probe(file, text_pair)
    except OSError as error:
        raise TrainingError(f"the probe {file} cannot be read: {error.strerror}") from None
    characters = sum(len(part) for text in texts for part in text)
    if characters > MAX_CHARACTERS:
        raise TrainingError(
            f"the first {len(texts)} texts of the probe {file} have {characters} characters;"
            f" expected at most {MAX_CHARACTERS}, which go into the adapter's file"
        )
    return texts


def probe_of(
    adapter: Classifier,
    backbone: Backbone,
    texts: Sequence[TextInput],
    max_length: int,
    template: str | None,
) -> Probe:
    """The texts with the logits of the merged adapter as it will be in the file."""
    prompt = backbone.prompt(template, max_length)
    logits = predict(adapter, encode(backbone.tokenizer, texts, max_length, prompt))
    return Probe(inputs=tuple(texts), logits=tuple(tuple(row) for row in logits.double().tolist()))

"""A predict request's `inputs`, in any of its forms → one task's rows of one or two texts."""

from __future__ import annotations

from typing import Any

from adapters.spec import shown
from adapters.text import TextInput, check_text
from service.http.sentences import plural
from service.predictor import Signature
from service.refusals import InvalidRequest


def count_inputs(inputs: Any, signature: Signature | None = None) -> int:
    """How many rows one task makes of `inputs`, without reading them; the fewest that any task can
    make where no task is given."""
    if not isinstance(inputs, list):
        return 1
    pairs = signature is None or signature.text_pair
    return 1 if pairs and _is_flat_pair(inputs) else len(inputs)


def read_inputs(inputs: Any, signature: Signature) -> tuple[list[TextInput], bool]:
    """`inputs` as one task takes them: its rows, and whether they were a list (so the answer is one
    too).

    Raises InvalidRequest or InvalidText.
    """
    if isinstance(inputs, list):
        if signature.text_pair and _is_flat_pair(inputs):
            return [_row(inputs, signature, "inputs")], False
        if not inputs:
            raise InvalidRequest("inputs is an empty list; expected at least one text")
        return [_row(item, signature, f"inputs[{i}]") for i, item in enumerate(inputs)], True
    return [_row(inputs, signature, "inputs")], False


def _is_flat_pair(inputs: list[Any]) -> bool:
    return len(inputs) == 2 and all(isinstance(text, str) for text in inputs)


def _row(item: Any, signature: Signature, name: str) -> TextInput:
    texts = _texts(item, name)
    wanted = 2 if signature.text_pair else 1
    if len(texts) != wanted:
        expected = (
            'a pair, such as {"text": …, "text_pair": …}' if signature.text_pair else "one text"
        )
        raise InvalidRequest(
            f"{name} holds {plural(len(texts), 'text')}; task {signature.task!r} expects {expected}"
        )
    for part, text in enumerate(texts):
        check_text(
            text, name if len(texts) == 1 else f"the {'second' if part else 'first'} text of {name}"
        )
    return texts


def _texts(item: Any, name: str) -> TextInput:
    if isinstance(item, str):
        return (item,)
    if isinstance(item, dict):
        unknown = set(item) - {"text", "text_pair"}
        if unknown or "text" not in item:
            raise InvalidRequest(
                f'{name} has the keys {shown(sorted(item))}; expected "text" and perhaps'
                ' "text_pair"'
            )
        texts = [item["text"]] + ([item["text_pair"]] if item.get("text_pair") is not None else [])
    else:
        texts = item
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InvalidRequest(
            f'{name} is {shown(item)}; expected a text, {{"text", "text_pair"}} or a list of one or'
            " two texts"
        )
    if len(texts) not in (1, 2):
        raise InvalidRequest(f"{name} holds {plural(len(texts), 'text')}; expected one or two")
    return (texts[0],) if len(texts) == 1 else (texts[0], texts[1])

"""V2's tensors ↔ rows: the tensors `text` and `text_pair` → texts; logits → the tensors `label`,
`score` and `logits`.

A tensor's data are in the JSON or, by the binary tensor data extension, bytes after it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from adapters.spec import shown
from adapters.text import TextInput, check_text
from service.http.sentences import quoted
from service.http.v2.schemas import (
    LABEL,
    LOGITS,
    SCORE,
    Datatype,
    InferRequest,
    InputTensor,
    input_names,
)
from service.predictor import Signature
from service.refusals import InvalidRequest
from service.scores import answer_of, default_function, scored


@dataclass(frozen=True)
class Wanted:
    """One output that was asked for; `classes`: as the best so many of "value:index:label"."""

    name: str
    classes: int | None
    binary: bool


@dataclass(frozen=True)
class Output:
    """One output tensor, its values flat in row-major order."""

    name: str
    datatype: Datatype
    shape: list[int]
    values: list[Any]


def count_rows(request: InferRequest, signature: Signature) -> int:
    """How many texts (or pairs) the input tensors say they hold. Raises InvalidRequest unless they
    are the task's."""
    expected = input_names(signature)
    counts: dict[str, int] = {}
    for tensor in request.inputs:
        name = tensor.name
        if name not in expected:
            raise InvalidRequest(
                f"task {signature.task!r} has no input {shown(name)}; expected {quoted(expected)}"
            )
        if name in counts:
            raise InvalidRequest(f"input {name!r} is there twice; expected it once")
        if tensor.datatype != "BYTES":
            raise InvalidRequest(
                f"input {name!r} has datatype {shown(tensor.datatype)}; expected 'BYTES'"
            )
        if len(tensor.shape) != 1 or tensor.shape[0] < 1:
            raise InvalidRequest(
                f"input {name!r} has shape {shown(tensor.shape)}; expected [n], n texts, at"
                " least one"
            )
        counts[name] = tensor.shape[0]
    if len(counts) < len(expected):
        raise InvalidRequest(
            f"the request has the input {quoted(list(counts))} alone; expected {quoted(expected)}"
        )
    if len(set(counts.values())) > 1:
        found = " and ".join(f"{count} of {name!r}" for name, count in counts.items())
        raise InvalidRequest(f"the request has {found}; expected as many of each")
    return counts[expected[0]]


def read_texts(
    request: InferRequest, binary: bytes | None, signature: Signature
) -> list[TextInput]:
    """The rows; `binary` is what follows the JSON, None where the request does not say where that
    ends.

    `count_rows` has been there. Raises InvalidRequest or InvalidText.
    """
    columns: dict[str, list[str]] = {}
    offset = 0
    for tensor in request.inputs:
        size = tensor.parameters.binary_data_size if tensor.parameters else None
        if size is None:
            columns[tensor.name] = _listed(tensor)
        else:
            columns[tensor.name] = _unpacked(tensor, _part(tensor, binary, offset, size))
            offset += size
    if binary is not None and offset < len(binary):
        raise InvalidRequest(
            f"the body has {len(binary)} bytes after its JSON; expected {offset}, the sum of its"
            " inputs' binary_data_size"
        )
    for name, texts in columns.items():
        for i, text in enumerate(texts):
            check_text(text, f"{name}[{i}]")
    first, *second = (columns[name] for name in input_names(signature))
    return list(zip(first, second[0], strict=True)) if second else [(text,) for text in first]


def wanted_outputs(request: InferRequest, signature: Signature) -> list[Wanted]:
    """The outputs asked for, by default all. Raises InvalidRequest."""
    known = (LABEL, SCORE, LOGITS)
    if not request.outputs:
        return [Wanted(name, None, request.binary_by_default) for name in known]
    wanted: dict[str, Wanted] = {}
    for output in request.outputs:
        name, parameters = output.name, output.parameters
        if name not in known:
            raise InvalidRequest(
                f"task {signature.task!r} has no output {shown(name)};"
                f" expected {quoted(known, 'or')}"
            )
        if name in wanted:
            raise InvalidRequest(f"output {name!r} is asked for twice; expected once")
        classes = parameters.classification if parameters else None
        if classes is not None and name == LABEL:
            raise InvalidRequest(
                f"output {name!r} is asked for as a classification; expected that of {SCORE!r} or"
                f" {LOGITS!r}"
            )
        if classes is not None:  # as Triton does
            classes = min(classes, len(signature.labels))
        binary = parameters.binary_data if parameters else None
        wanted[name] = Wanted(
            name, classes, request.binary_by_default if binary is None else binary
        )
    return list(wanted.values())


def output(
    wanted: Wanted, logits: Sequence[list[float]], signature: Signature, least: float | None = None
) -> Output:
    """One output tensor of rows' logits `[n][C]`. A row's label and score are its best: a
    multi-label task's other labels are in the classification of `score`, and in `logits`. The label
    of a row whose confidence is below `least` is empty: BYTES have no null."""
    n, labels, temperatures = len(logits), signature.labels, signature.temperatures
    function = "none" if wanted.name == LOGITS else default_function(signature.problem_type)
    if wanted.classes is not None:
        index = {label: i for i, label in enumerate(labels)}
        best = [
            entry
            for row in logits
            for entry in scored(row, labels, function, wanted.classes, temperatures)
        ]
        values = [f"{entry['score']:f}:{index[entry['label']]}:{entry['label']}" for entry in best]
        return Output(wanted.name, "BYTES", [n, wanted.classes], values)
    if wanted.name == LOGITS:
        return Output(LOGITS, "FP32", [n, len(labels)], [value for row in logits for value in row])
    if wanted.name == LABEL:
        rows = [answer_of(row, signature, function, 1, least)[0]["label"] or "" for row in logits]
        return Output(LABEL, "BYTES", [n], rows)
    scores = [scored(row, labels, function, 1, temperatures)[0]["score"] for row in logits]
    return Output(SCORE, "FP32", [n], scores)


def encode(
    head: dict[str, str], wanted: Sequence[Wanted], outputs: Sequence[Output]
) -> tuple[bytes, int | None]:
    """An infer answer, and where its JSON ends if bytes follow."""
    entries: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for asked, tensor in zip(wanted, outputs, strict=True):
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
        }
        if asked.binary:
            tail.append(_packed(tensor))
            entry["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            entry["data"] = tensor.values
        entries.append(entry)
    content = orjson.dumps({**head, "outputs": entries})
    return (content + b"".join(tail), len(content)) if tail else (content, None)


def _listed(tensor: InputTensor) -> list[str]:
    """The texts of a tensor that stands in the JSON."""
    name, (count,), data = tensor.name, tensor.shape, tensor.data
    if data is None:
        raise InvalidRequest(
            f"input {name!r} has neither data nor a binary_data_size; expected one of them"
        )
    if not isinstance(data, list):
        raise InvalidRequest(f"input {name!r} has data {shown(data)}; expected a list of texts")
    if len(data) != count:
        raise InvalidRequest(
            f"input {name!r} has {len(data)} elements of data; expected {count}, as its shape says"
        )
    for i, text in enumerate(data):
        if not isinstance(text, str):
            raise InvalidRequest(f"{name}[{i}] is {shown(text)}; expected a text")
    return data


def _part(tensor: InputTensor, binary: bytes | None, offset: int, size: int) -> bytes:
    """The bytes of one tensor, out of what follows the JSON."""
    name = tensor.name
    if tensor.data is not None:
        raise InvalidRequest(
            f"input {name!r} has both data and a binary_data_size; expected one of them"
        )
    if binary is None:
        raise InvalidRequest(
            f"input {name!r} has binary_data_size {size}, and the request no"
            " Inference-Header-Content-Length; expected that header: the length of the JSON before"
            " the binary data"
        )
    if size > len(binary) - offset:
        raise InvalidRequest(
            f"input {name!r} has binary_data_size {size}; expected at most {len(binary) - offset},"
            " what is left of the body"
        )
    return binary[offset : offset + size]


def _unpacked(tensor: InputTensor, part: bytes) -> list[str]:
    """The texts of a binary tensor: each four bytes of length, little-endian, and UTF-8."""
    name, (count,) = tensor.name, tensor.shape
    texts: list[str] = []
    offset = 0
    for i in range(count):
        start = offset + 4
        if start > len(part):
            raise InvalidRequest(
                f"input {name!r} ends before {name}[{i}] does; expected as many texts as its shape"
                f" says, {count}"
            )
        (length,) = struct.unpack_from("<I", part, offset)
        offset = start + length
        if offset > len(part):
            raise InvalidRequest(
                f"{name}[{i}] says it has {length} bytes; expected at most {len(part) - start},"
                " what is left of its tensor"
            )
        try:
            texts.append(part[start:offset].decode())
        except UnicodeDecodeError as error:
            raise InvalidRequest(
                f"{name}[{i}] is not UTF-8 from byte {error.start} on; expected UTF-8"
            ) from None
    if offset < len(part):
        raise InvalidRequest(
            f"input {name!r} has {len(part)} bytes; expected {offset}, where the last text of its"
            f" shape [{count}] ends"
        )
    return texts


def _packed(tensor: Output) -> bytes:
    if tensor.datatype == "FP32":
        return struct.pack(f"<{len(tensor.values)}f", *tensor.values)
    texts = [value.encode() for value in tensor.values]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)

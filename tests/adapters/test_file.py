"""The adapter file: what goes in comes out, and whatever breaks docs/adapter-format.md is refused
with a sentence."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.classifier import collate, from_adapter
from adapters.errors import BackboneMismatch, InvalidAdapter
from adapters.file import load, parse, read_summary, reread, save, serialize
from adapters.header import FORMAT
from adapters.parity import check_backbone, check_parity
from adapters.replay import replay
from adapters.text import encode
from benchmarks.reliability.files import join, mutated, split
from tests.conftest import ROOT
from tests.tiny import random_adapter, tiny_backbone

# of the tiny backbones
LIMITS: dict[str, Any] = {
    "intermediate_size": 64,
    "max_length": 64,
    "has_pooler": True,
    "has_mask": True,
}
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


@pytest.fixture(scope="module")
def valid(bert: Backbone) -> bytes:
    return random_adapter(bert, "sst2", ["negative", "positive"], bottleneck=2)[2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dense", [False, True])
def test_round_trip(bert: Backbone, tmp_path: Path, dtype: torch.dtype, dense: bool) -> None:
    """A saved adapter loads with the same spec and, to the bit, the same tensors, under the sha256
    of its file."""
    spec, tensors, data = random_adapter(bert, "t", ["a", "b"], dtype=dtype, dense=dense)
    path = tmp_path / "t.safetensors"
    saved, loaded = save(path, spec, tensors), load(path)
    assert saved.spec == loaded.spec == read_summary(path).spec == spec
    assert saved.digest == loaded.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.version == loaded.digest[:12]
    assert loaded.bytes == path.stat().st_size == len(data)
    assert (
        loaded.parameters
        == read_summary(path).parameters
        == sum(tensor.numel() for tensor in tensors.values())
    )
    assert loaded.tensors.keys() == tensors.keys()
    assert all(
        loaded.tensors[name].dtype == dtype and torch.equal(loaded.tensors[name], tensors[name])
        for name in tensors
    )
    assert [file.name for file in tmp_path.iterdir()] == ["t.safetensors"]


def test_one_adapter_is_one_version(bert: Backbone) -> None:
    """The same spec and tensors always give the same bytes."""
    spec, tensors, data = random_adapter(bert, "t", ["schön", "中文"])
    assert {serialize(spec, tensors) for _ in range(20)} == {data}
    assert random_adapter(bert, "t", ["schön", "中文"])[2] == data


def test_dtypes_may_differ(bert: Backbone) -> None:
    """The tensors of one file need not have the same dtype."""
    spec, tensors, _ = random_adapter(bert, "t", ["a", "b"])
    mixed = {name: tensor.to(DTYPES[i % 3]) for i, (name, tensor) in enumerate(tensors.items())}
    assert {tensor.dtype for tensor in parse(serialize(spec, mixed)).tensors.values()} == set(
        DTYPES
    )


def test_a_file_that_was_stored(bert: Backbone) -> None:
    """Read again, an adapter is what it was, and its tensors lie in the file's own bytes."""
    data = random_adapter(bert, "t", ["a", "b"], dense=True)[2]
    first, buffer = parse(data), bytearray(data)
    again = reread(buffer, first.digest)
    assert (again.spec, again.digest, again.bytes) == (first.spec, first.digest, first.bytes)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in first.tensors.items())
    start = torch.frombuffer(buffer, dtype=torch.uint8).data_ptr()
    assert all(start < tensor.data_ptr() < start + len(buffer) for tensor in again.tensors.values())


def test_tensors_that_lie_crooked(bert: Backbone) -> None:
    """A file whose half-precision tensors begin at odd bytes, as another writer may lay them out,
    is read to the same."""
    data = random_adapter(bert, "t", ["a", "b"])[2]
    header, body = split(data)
    text = json.dumps(header).encode()
    crooked = join(text + b" " * (1 - len(text) % 2), body)
    assert all(
        torch.equal(parse(crooked).tensors[name], tensor)
        for name, tensor in parse(data).tensors.items()
    )


def test_what_is_no_file_stays(bert: Backbone, tmp_path: Path) -> None:
    """A link's target is written and the link stays; a pipe is refused, and no file takes its
    place."""
    spec, tensors, _ = random_adapter(bert, "t", ["a", "b"])
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to("target")
    assert save(link, spec, tensors).digest == load(tmp_path / "target").digest
    assert link.is_symlink()
    os.mkfifo(pipe)
    with pytest.raises(OSError, match=r"it is no regular file.*pipe"):
        save(pipe, spec, tensors)
    assert pipe.is_fifo()


def test_an_invalid_adapter_is_not_written(bert: Backbone, tmp_path: Path) -> None:
    """A save that would give an invalid file raises, and leaves the file that was there."""
    spec, tensors, _ = random_adapter(bert, "t", ["a", "b"])
    path = tmp_path / "t.safetensors"
    path.write_bytes(b"before")
    with pytest.raises(InvalidAdapter):
        save(path, spec, {**tensors, "up.bias": torch.full_like(tensors["up.bias"], float("nan"))})
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def _header(data: bytes) -> bytes:
    return data[8 : len(data) - len(split(data)[1])]


CONTAINERS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "has 0 bytes; expected a safetensors file"),
    "seven bytes": (lambda d: d[:7], "has 7 bytes; expected"),
    "a pickle": (
        lambda _: b"\x80\x04\x95" + b"x" * 200,
        "header claims .* expected at most 1048576",
    ),
    "a Git LFS pointer": (
        lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 451796\n",
        "the file looks like a Git LFS pointer, .*`git lfs pull`.*; expected a safetensors file",
    ),
    "a gzip": (gzip.compress, "looks like a gzip archive, .*; expected a safetensors file"),
    "a zip": (lambda _: b"PK\x03\x04" + b"x" * 99, "looks like a zip archive, as torch.save"),
    "a page": (lambda _: b"<!DOCTYPE html><html></html>", "looks like a page of HTML or XML"),
    "a text": (
        lambda _: b"task: sst2, labels: [a, b]",
        "header claims .* expected at most 1048576",
    ),
    "header over 1 MiB": (
        lambda d: struct.pack("<Q", (1 << 20) + 1) + d,
        "claims 1048577 bytes; expected at most 1048576",
    ),
    "header beyond the file": (
        lambda d: struct.pack("<Q", 1 << 20) + d,
        "its header alone claims 1048584; it is cut short",
    ),
    "cut in the header": (lambda d: d[:100], "has 100 bytes, its header alone claims"),
    "cut in the tensors": (lambda d: d[:-1], "not valid safetensors"),
    "cut before the tensors": (lambda d: d[: 8 + len(_header(d))], "not valid safetensors"),
    "a byte too many": (lambda d: d + b"\0", "not valid safetensors"),
    "header no JSON": (lambda _: join(b"{nope", b""), "header is not JSON"),
    "header no UTF-8": (lambda _: join(b'{"\xff": 1}', b""), "header is not JSON"),
    "header a list": (lambda _: join(b"[1]", b""), "header is a JSON list; expected an object"),
    "header too deep": (lambda _: join(b"[" * 200_000, b""), "header is not JSON"),
    "a key twice": (
        lambda d: join(b'{"up.bias":1,' + _header(d)[1:], split(d)[1]),
        "key 'up.bias' stands there twice",
    ),
    "a key within twice": (
        lambda _: join(b'{"__metadata__":{"a":"x","a":"y"}}', b""),
        "key 'a' stands there twice",
    ),
    "no metadata": (
        lambda _: join(b"{}", b""),
        "metadata keys are none; expected exactly 'format' and 'spec'",
    ),
}


@pytest.mark.parametrize("case", CONTAINERS)
def test_broken_containers(valid: bytes, case: str) -> None:
    """A file that is no whole, plain safetensors file is refused with what was found and what was
    expected."""
    breaking, message = CONTAINERS[case]
    with pytest.raises(InvalidAdapter, match=message):
        parse(breaking(valid))


def _no(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda t: t.pop(name)


def _put(
    name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[dict[str, Any]], Any]:
    return lambda t: t.update({name: change(t[name])})


def _with(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda t: t.index_fill(0, torch.tensor(1), value)


TENSORS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "missing": (
        _no("down.bias"),
        r"tensor 'down.bias' is missing; expected 'down.bias' of shape \[2, 2\]",
    ),
    "extra": (
        lambda t: t.update({"note": torch.zeros(1)}),
        "holds a tensor 'note'; expected only down.weight, ",
    ),
    "renamed": (
        lambda t: t.update({"Up.bias": t.pop("up.bias")}),
        "holds a tensor 'Up.bias'; expected only",
    ),
    "long name": (
        lambda t: t.update({"x" * 500: torch.zeros(1)}),
        f"holds a tensor '{'x' * 80}'; expected only",
    ),
    "dense weight alone": (
        _no("head.dense.bias"),
        "holds 'head.dense.weight' alone; expected both",
    ),
    "dense bias alone": (_no("head.dense.weight"), "holds 'head.dense.bias' alone; expected both"),
    "transposed": (
        _put("up.weight", lambda t: t.mT),
        r"'up.weight' has shape \[2, 2, 32\]; expected \[2, 32, 2\]",
    ),
    "a layer less": (
        _put("down.weight", lambda t: t[1:]),
        r"'down.weight' has shape \[1, 2, 32\]; expected \[2, 2, 32\]",
    ),
    "a label more": (
        _put("head.out.bias", lambda t: t.repeat(2)[:3]),
        r"'head.out.bias' has shape \[3\]; expected \[2\]",
    ),
    "flat": (
        _put("head.out.weight", lambda t: t.flatten()),
        r"'head.out.weight' has shape \[64\]; expected \[2, 32\]",
    ),
    "float64": (
        _put("up.bias", lambda t: t.double()),
        "'up.bias' has dtype 'F64'; expected one of F32, F16, BF16",
    ),
    "int8": (
        _put("up.bias", lambda t: t.to(torch.int8)),
        "'up.bias' has dtype 'I8'; expected one of",
    ),
    "NaN": (
        _put("up.bias", _with(float("nan"))),
        "'up.bias' holds NaN or infinity; expected finite",
    ),
    "infinity": (
        _put("head.dense.weight", _with(float("inf"))),
        "'head.dense.weight' holds NaN or",
    ),
    "minus infinity": (
        _put("head.out.bias", lambda t: t - float("inf")),
        "'head.out.bias' holds NaN or infinity",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_broken_tensors(bert: Backbone, case: str) -> None:
    """A tensor that is missing, unknown, of another shape or dtype, or not finite is refused by its
    name."""
    breaking, message = TENSORS[case]
    spec, tensors, _ = random_adapter(bert, "t", ["a", "b"], bottleneck=2, dense=True)
    breaking(tensors)
    with pytest.raises(InvalidAdapter, match=message):
        parse(serialize(spec, tensors))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": ["F16"]}, r"has dtype \['F16'\]; expected one of"),
        ({"dtype": None}, "has dtype None; expected one of"),
        ({"shape": "32"}, r"has shape '32'; expected \[2, 2, 32\]"),
        ({"shape": [2, 2, 32.0]}, r"has shape \[2, 2, 32.0\]; expected \[2, 2, 32\]"),
        ({"data_offsets": [0, 1 << 40]}, "not valid safetensors"),
        ({"data_offsets": [-1, 255]}, "not valid safetensors"),
        ({"data_offsets": [2, 258]}, "not valid safetensors"),
        ({"data_offsets": [0, 256.0]}, r"not valid safetensors.*\[0, 256.0\]; expected its first"),
        ({"data_offsets": [False, 256]}, r"not valid safetensors.*\[False, 256\]; expected its"),
        ({"data_offsets": [[], {}]}, "not valid safetensors"),
        ({"data_offsets": [0]}, "not valid safetensors"),
        ({"data_offsets": None}, "not valid safetensors"),
        (3, "has dtype None; expected"),
    ],
)
def test_broken_entries(valid: bytes, change: Any, message: str) -> None:
    """A header's entry for a tensor that is not as safetensors has it is refused."""
    header, body = split(valid)
    header["down.weight"] = (
        {**header["down.weight"], **change} if isinstance(change, dict) else change
    )
    with pytest.raises(InvalidAdapter, match=message):
        parse(join(header, body))


def test_what_is_taken_can_be_read_by_the_library_of_safetensors(valid: bytes) -> None:
    """Of files that are damaged at random, none is taken that the library of the format refuses."""
    chance = random.Random(7)
    taken = 0
    for _ in range(3000):
        data = mutated(valid, chance)
        with contextlib.suppress(InvalidAdapter):
            parse(data)
            assert safetensors.torch.load(data)
            taken += 1
    assert taken > 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"format": "adamix-adapter/2"},
            "format is 'adamix-adapter/2'; expected 'adamix-adapter/1'",
        ),
        ({"format": 1}, "format is '1'; expected"),
        (
            {"author": "me"},
            (
                r"metadata keys are \['author', 'format', 'spec'\]; expected exactly 'format' and"
                r" 'spec'"
            ),
        ),
        ({"spec": 3}, "spec is a int; expected a string"),
        ({"spec": ""}, "spec is not JSON"),
        ({"spec": "{"}, "spec is not JSON"),
        ({"spec": "[]"}, "spec is not valid"),
        ({"spec": "null"}, "spec is not valid"),
        ({"spec": '{"task": "\ud800"}'}, "spec is not "),
        ({"spec": "\ud800"}, "spec is not "),
        ({"spec": '{"task": "a", "task": "b"}'}, "the key 'task' stands there twice"),
        ({"spec": '{"training":' + "[" * 100_000 + "}"}, "spec is not JSON"),
    ],
)
def test_broken_metadata(valid: bytes, change: dict[str, Any], message: str) -> None:
    """Metadata that are not exactly a known format and a spec are refused."""
    header, body = split(valid)
    header["__metadata__"] |= change
    with pytest.raises(InvalidAdapter, match=message):
        parse(join(header, body))


SPECS: list[tuple[str, Any, str]] = [
    *(
        ("task", task, "task is ")
        for task in ["../x", "a/b", "A", "", "a" * 65, ".", "-a", "a\n", "é", "a b", 7, None]
    ),
    ("labels", ["a", "a"], r"labels are \['a', 'a'\]; expected distinct names"),
    ("labels", [], r"labels is \[\]; .*at least 1"),
    ("labels", ["a", ""], "labels.1 is ''; expected it to have at least 1 character"),
    ("labels", ["a", 1], "labels.1 is 1; expected a valid string"),
    ("labels", ["a"], "single_label_classification has the label 'a' only; expected 2 or more"),
    ("labels", [str(i) for i in range(1001)], "labels is .*at most 1000"),
    ("labels", ["a", "b" * 257], "labels.1 is 'bbb.*; expected it to have at most 256 characters"),
    (
        "labels",
        [f"{i:03}" + "x" * 253 for i in range(300)],
        "labels have 76800 characters together; expected at most 65536",
    ),
    *(
        ("labels", ["a", f"b{control}"], "'b.*' holds a control character; expected printable")
        for control in ("\x1b[31m", "\n", "\x00", "\x7f", "\x85", "\u2028", "\u202e", "\u2067")
    ),
    ("backbone.name", "a\x1b]0;b\x07", "holds a control character; expected printable text"),
    ("backbone.name", "a" * 1025, "backbone.name is .* at most 1024 characters"),
    ("backbone.model_type", "bert\n", "holds a control character; expected printable text"),
    ("training.scores", {"f1": 10**400}, "training.scores.f1 is an integer of 1329 bits"),
    ("training.scores", {"f1": -(2**63)}, "training.scores.f1 is an integer of 64 bits; expected"),
    ("training.scores", [0.5, float("nan")], "training.scores.1 is nan; expected a finite number"),
    ("training.scores", float("-inf"), "training.scores is -inf; expected a finite number"),
    ("training.note", "\x1b[2J", r"training.note is '\\x1b\[2J'; expected no control characters"),
    ("training", {"\x1b[2J": 1}, r"the key '\\x1b\[2J' of training is .*; expected no control"),
    (
        "training.deep",
        json.loads("[" * 40 + "]" * 40),
        "training.deep.0.*0 is nested more deeply than 32 levels; expected fewer",
    ),
    *(
        (key, [[0]] * 20_000, "the adapter's spec holds 40[0-9]+ values; expected at most 32768")
        for key in ("training.curve", "labels", "probe.inputs", "probe.logits")
    ),
    ("x" * 800_000, 1, "^the adapter's spec is not valid: xxx.* is there; expected no such key"),
    ("\x1b[2J", 1, r"valid: \\x1b\[2J is there; expected no such key"),
    (
        "probe.logits",
        [[0.0, 1.0], [0.0] * 5000],
        r"probe.logits\[1\] is \[0.0, .*; expected 2 finite",
    ),
    ("probe.logits", [[0.0, 1.0], [0.0, 10**400]], "probe.logits.*; expected .*finite"),
    ("labels", ["x" * 200, "x" * 200], "labels are .*; expected distinct names"),
    ("problem_type", "regression", "a regression task has 2 labels; expected 1"),
    (
        "problem_type",
        "ranking",
        "problem_type is 'ranking'; expected 'single_label_classification'",
    ),
    ("text_pair", "yes", "text_pair is 'yes'; expected a valid boolean"),
    ("text_pair", True, r"probe.inputs\[0\] holds 1 texts; expected 2"),
    ("max_length", 7, "max_length is 7; expected greater than or equal to 8"),
    ("max_length", 1e9, "max_length is 1000000000.0; expected a valid integer"),
    ("max_length", "64", "max_length is '64'; expected a valid integer"),
    ("pooling", "max", "pooling is 'max'; expected 'cls', 'mean'"),
    ("bottleneck", 0, "bottleneck is 0; expected greater than or equal to 1"),
    ("bottleneck", 257, "bottleneck is 257; expected less than or equal to 256"),
    ("activation", "relu", "activation is 'relu'; expected 'gelu'"),
    *(
        ("temperatures", [value], f"temperatures.0 is {value}; expected {expected}")
        for value, expected in [
            (0.0, "greater than or equal to 0.01"),
            (-1.5, "greater than or equal to 0.01"),
            (float("nan"), ".*finite number"),
            (float("inf"), ".*finite number"),
            (1e9, "less than or equal to 100"),
        ]
    ),
    ("temperatures", [], r"temperatures is \[\]; .*at least 1"),
    ("temperatures", ["1"], "temperatures.0 is '1'; expected a valid number"),
    (
        "temperatures",
        [1.5, 1.5],
        "temperatures holds 2 numbers; expected 1, as single_label_classification has",
    ),
    ("risk_coverage", [], r"risk_coverage is \[\]; .*at least 1"),
    (
        "risk_coverage",
        [{"accuracy": 0.9, "coverage": 1.0, "threshold": -0.1}],
        "risk_coverage.0.threshold is -0.1; expected greater than or equal to 0",
    ),
    (
        "risk_coverage",
        [{"accuracy": 0.9, "coverage": 0.5, "threshold": 0.8, "rows": 3}],
        "risk_coverage.0.rows is there; expected no such key",
    ),
    *(
        (
            "risk_coverage",
            [{"accuracy": 0.9, "coverage": 0.5, "threshold": 0.8}, after],
            "risk_coverage has accuracy .* after accuracy 0.9.*; expected a higher accuracy",
        )
        for after in (
            {"accuracy": 0.9, "coverage": 0.4, "threshold": 0.9},
            {"accuracy": 0.95, "coverage": 0.6, "threshold": 0.9},
            {"accuracy": 0.95, "coverage": 0.4, "threshold": 0.7},
        )
    ),
    ("training", [], r"training is \[\]; expected an object"),
    ("author", "me", "author is there; expected no such key"),
    ("backbone.author", "me", "backbone.author is there; expected no such key"),
    ("backbone.fingerprint", "abc", "backbone.fingerprint is 'abc'; expected it to match pattern"),
    ("backbone.hidden_size", 1 << 40, "backbone.hidden_size is 1099511627776; expected less than"),
    ("probe.note", "x", "probe.note is there; expected no such key"),
    ("probe.inputs", [], r"probe.inputs is \[\]; .*at least 1"),
    ("probe.inputs", [["x"]] * 17, "probe.inputs is .*at most 16"),
    ("probe.inputs", [["x"]], "probe has 2 rows of logits for 1 inputs; expected one each"),
    ("probe.inputs", [["x"], []], r"probe.inputs\[1\] holds 0 texts; expected 1"),
    ("probe.logits", [[0.0, 1.0]], "probe has 1 rows of logits for 2 inputs; expected one each"),
    (
        "probe.logits",
        [[0.0, 1.0], [0.0]],
        r"probe.logits\[1\] is \[0.0\]; expected 2 finite numbers",
    ),
    (
        "probe.logits",
        [[0.0, 1.0], [0.0, float("nan")]],
        r"probe.logits\[1\] is \[0.0, nan\]; expected 2 finite numbers",
    ),
]


@pytest.mark.parametrize(("key", "value", "message"), SPECS)
def test_broken_specs(valid: bytes, key: str, value: Any, message: str) -> None:
    """A spec that says what the format does not allow is refused by the key, the value found and
    the value expected."""
    header, body = split(valid)
    spec = json.loads(header["__metadata__"]["spec"])
    *path, last = key.split(".")
    place = spec
    for step in path:
        place = place[step]
    place[last] = value
    header["__metadata__"]["spec"] = json.dumps(spec)
    with pytest.raises(InvalidAdapter, match=message) as caught:
        parse(join(header, body))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_numbers_beyond_a_float(valid: bytes) -> None:
    """A number in the training record that no float can hold is refused, however it is written."""
    header, body = split(valid)
    text = header["__metadata__"]["spec"]
    for number, message in (("1e999", "is inf; expected a finite"), ("9" * 5000, "is not JSON: ")):
        header["__metadata__"]["spec"] = text.replace('"seed":0', f'"seed":{number}')
        with pytest.raises(InvalidAdapter, match=message) as caught:
            parse(join(header, body))
        assert len(str(caught.value)) < 400


def test_what_the_training_record_may_hold(valid: bytes) -> None:
    """A training record of several levels, lines and 63-bit numbers is taken as it is."""
    header, body = split(valid)
    spec = json.loads(header["__metadata__"]["spec"])
    spec["training"] = {
        "note": "two\nlines\tand a tab",
        "scores": {"f1": 0.5, "rows": 2**63 - 1, "best": None, "early": True},
        "deep": json.loads("[" * 30 + "]" * 30),
    }
    header["__metadata__"]["spec"] = json.dumps(spec)
    assert parse(join(header, body)).spec.training == spec["training"]


@pytest.mark.parametrize(
    "file", sorted((ROOT / "store").glob("*.safetensors")), ids=lambda f: f.stem
)
def test_the_shipped_files(file: Path, embedded: Backbone) -> None:
    """Each shipped file is valid, and computes on the embedded backbone what it says."""
    replay(load(file), embedded)


@pytest.mark.parametrize("key", ["task", "labels", "max_length", "probe", "backbone"])
def test_incomplete_specs(valid: bytes, key: str) -> None:
    """A spec without one of its keys is refused by that key."""
    header, body = split(valid)
    spec = json.loads(header["__metadata__"]["spec"])
    del spec[key]
    header["__metadata__"]["spec"] = json.dumps(spec)
    with pytest.raises(InvalidAdapter, match=f"{key} is missing; expected it to be there"):
        parse(join(header, body))


def test_a_key_twice_is_found_quickly() -> None:
    """A header of a hundred thousand keys, one of them twice, is refused in no more than
    seconds."""
    keys = ",".join(f'"{i:05}":0' for i in [*range(100_000), 99_999]).encode()
    started = time.process_time()
    with pytest.raises(InvalidAdapter, match="key '99999' stands there twice"):
        parse(join(b"{" + keys + b"}", b""))
    assert time.process_time() - started < 5


def test_what_safetensors_itself_would_take() -> None:
    """A valid safetensors file that is no adapter is refused."""
    data = safetensors.torch.save({"weight": torch.zeros(2)}, {"format": FORMAT})
    with pytest.raises(InvalidAdapter, match=r"metadata keys are \['format'\]"):
        parse(data)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_is_refused_or_harmless(valid: bytes, data: st.DataObject) -> None:
    """Whatever bytes of a valid file are changed, cut out or doubled, it is refused or parses to a
    valid adapter."""
    damaged = bytearray(valid)
    header = 8 + struct.unpack("<Q", valid[:8])[0]
    for _ in range(data.draw(st.integers(1, 4))):
        end = data.draw(st.sampled_from([8, header, len(valid)]))
        start = data.draw(st.integers(0, end))
        damaged[start : start + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    try:
        adapter = parse(bytes(damaged))
    except InvalidAdapter:
        return
    assert all(torch.isfinite(tensor).all() for tensor in adapter.tensors.values())


def test_parity(bert: Backbone) -> None:
    """A probe's own logits pass the self-test, logits beyond the dtype's tolerance or NaN fail it
    with both shown."""
    adapter = parse(random_adapter(bert, "t", ["a", "b"])[2])
    model = from_adapter(bert, adapter)
    logits = model(
        collate(encode(bert.tokenizer, [("it is a good film",), ("not very good",)], 64))
    ).tolist()
    check_parity(adapter, logits, "float32")
    scale = max(1.0, max(abs(value) for row in logits for value in row))
    for off, dtype in (
        (2e-3, "float32"),
        (6e-2, "float16"),
        (0.2, "bfloat16"),
        (float("nan"), "int8"),
    ):
        wrong = [logits[0], [logits[1][0], logits[1][1] + off * scale]]
        with pytest.raises(
            BackboneMismatch,
            match=r"probe input 1 gives the logits \[.*\] here; expected \[.*\], which",
        ):
            check_parity(adapter, wrong, dtype)
    check_parity(adapter, [[value + 0.02 * scale for value in row] for row in logits], "float16")


def test_fit(bert: Backbone, tmp_path: Path) -> None:
    """An adapter fits the backbone that it was trained on; of another one it is refused with both
    fingerprints."""
    adapter = parse(random_adapter(bert, "t", ["a", "b"])[2])
    other = backbones.load(str(tiny_backbone(tmp_path, "bert", seed=1)))
    check_backbone(adapter, bert.reference, **LIMITS)
    with pytest.raises(
        BackboneMismatch, match=f"{bert.fingerprint[:12]}; expected .*{other.fingerprint[:12]}"
    ):
        check_backbone(adapter, other.reference, **LIMITS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 65}, "max_length is 65; expected at most 64"),
        ({"pooling": "pooler"}, "pooling is 'pooler'; expected mean or cls"),
        ({"template": "{text} {mask}"}, "pooling is 'mask'; expected mean or cls"),
        ({"layers": 3}, "has 3 layers of 32; expected 2 of 32"),
    ],
)
def test_claims_beyond_the_backbone(bert: Backbone, change: dict[str, Any], message: str) -> None:
    """An adapter with the right fingerprint that asks for more than the backbone has is refused."""
    spec, tensors, _ = random_adapter(bert, "t", ["a", "b"], template=change.pop("template", None))
    layers = change.pop("layers", 2)
    reference = bert.reference.model_copy(update={"num_layers": layers})
    stacked = {
        name: t if name.startswith("head.") else t[:1].expand(layers, *t.shape[1:])
        for name, t in tensors.items()
    }
    adapter = parse(serialize(spec.model_copy(update={**change, "backbone": reference}), stacked))
    with pytest.raises(BackboneMismatch, match=message):
        check_backbone(adapter, bert.reference, **LIMITS | {"has_pooler": False, "has_mask": False})

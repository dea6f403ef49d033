"""The int8 backbone: near float32, the same answer in any batch, a quarter of the memory, refused
where it cannot be."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import httpx2
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.file import Adapter, parse
from adapters.text import Tokens
from service.app import create_app
from service.engine import quantized
from service.engine.engine import Engine
from service.engine.native.library import Library, load
from service.engine.quantized import Quantized, QuantizedTable
from service.engine.row import Row
from service.engine.slots import Slots
from service.settings import InvalidSettings, Settings
from tests.service.conftest import TASKS, running
from tests.service.test_encoder import rows_of
from tests.tiny import POSITIONS, random_adapter, tiny_backbone

CPU = torch.device("cpu")
REASON = quantized.lacking(CPU)
torch_has_it = pytest.mark.skipif(REASON is not None, reason=f"torch has no int8 here: {REASON}")
TEXTS = {
    "inputs": [
        {"text": "a charming and often affecting journey"},
        {"text": "no plot, no jokes, no end"},
    ]
}


@pytest.fixture(scope="module", params=["bert", "roberta", "electra", "embedded"])
def backbone(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, embedded: Backbone
) -> Backbone:
    if request.param == "embedded":
        return embedded
    return backbones.load(str(tiny_backbone(tmp_path_factory.mktemp("backbone"), request.param)))


@pytest.fixture(params=[pytest.param("torch", marks=torch_has_it), "native"])
def kernels(request: pytest.FixtureRequest) -> str:
    """What computes: torch's operators where they can, and the native kernels where they can."""
    if request.param == "native":
        library: Library = request.getfixturevalue("library")
        if not library.has_int8:
            pytest.skip(f"no int8 for this processor ({library.kind})")
    return str(request.param)


def engine_of(backbone: Backbone, kernels: str, dtype: torch.dtype = torch.int8) -> Engine:
    native = load() if kernels == "native" else None
    return Engine(backbone, Slots(16, CPU, torch.float32), CPU, dtype, native=native)


@cache
def adapters_of(backbone: Backbone) -> list[Adapter]:
    """Three tasks with different labels, poolings, heads and bottlenecks."""
    made = [
        random_adapter(
            backbone, "value", ["score"], problem_type="regression", bottleneck=2, seed=1
        ),
        random_adapter(backbone, "two", ["no", "yes"], pooling="cls", dense=True, seed=2),
        random_adapter(backbone, "five", list("abcde"), bottleneck=48, seed=3),
    ]
    return [parse(data) for _, _, data in made]


def dealt(backbone: Backbone, tokens: Sequence[Tokens]) -> list[Row]:
    """Rows dealt out to the adapters in turn."""
    adapters = adapters_of(backbone)
    return [Row(adapters[i % 3], row.ids, row.types) for i, row in enumerate(tokens)]


def test_logits_are_near(backbone: Backbone, kernels: str) -> None:
    """int8 logits are within a tenth of float32's largest, and not the same."""
    rows = dealt(backbone, rows_of(backbone, [2, POSITIONS, 5, 5, 17, 2, 33, 5, POSITIONS, 3, 17]))
    exact, rough = (
        engine_of(backbone, kernels, dtype).run(rows) for dtype in (torch.float32, torch.int8)
    )
    scale = max(1.0, *(abs(value) for logits in exact for value in logits))
    for found, expected in zip(rough, exact, strict=True):
        torch.testing.assert_close(
            torch.tensor(found), torch.tensor(expected), rtol=0.0, atol=0.1 * scale
        )
    assert rough != exact


@cache
def _shared(backbone: Backbone) -> Engine:
    return engine_of(backbone, "torch")


@torch_has_it
@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(2, POSITIONS), min_size=1, max_size=20), data=st.data())
def test_batch_mates_do_not_matter(lengths: list[int], data: st.DataObject, bert: Backbone) -> None:
    """A row's int8 logits are the same alone, in any batch and at any place of it: no rounding
    flips."""
    rows = dealt(bert, rows_of(bert, lengths))
    engine = _shared(bert)
    order = data.draw(st.permutations(range(len(rows))))
    together = engine.run([rows[i] for i in order])
    for place, i in enumerate(order):
        alone = torch.tensor(engine.run([rows[i]])[0])
        torch.testing.assert_close(torch.tensor(together[place]), alone, rtol=1e-6, atol=1e-6)


@torch_has_it
def test_batch_mates_do_not_matter_to_several_threads(embedded: Backbone) -> None:
    """With two threads too, no rounding flips where other rows join a row's batch."""
    rows = dealt(embedded, rows_of(embedded, [5, 9, 7, 25, 2, 11, 30, 6, 3, 10]))
    engine, before = engine_of(embedded, "torch"), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        together = engine.run(rows)
        alone = [engine.run([row])[0] for row in rows]
    finally:
        torch.set_num_threads(before)
    for found, wanted in zip(together, alone, strict=True):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=1e-6, atol=1e-6)


@torch_has_it
@pytest.mark.parametrize("lowest", [None, -0.17, 0.0])
def test_a_layer(lowest: float | None) -> None:
    """A quantised layer is within two hundredths of the float32 one, whatever the rows' and the
    columns' sizes are."""
    weight, bias = torch.randn(48, 64) * torch.logspace(-3, 1, 48).unsqueeze(1), torch.randn(48)
    x = torch.randn(40, 64) * torch.logspace(-4, 4, 40).unsqueeze(1)
    x = x if lowest is None else F.gelu(x) if lowest < 0 else F.relu(x)
    found, wanted = Quantized(weight, bias, lowest=lowest)(x), F.linear(x, weight, bias)
    size = x.norm(dim=1, keepdim=True).clamp(min=1.0) * weight.norm(dim=1)
    assert ((found - wanted).abs() / size).max() < 0.02


@torch_has_it
def test_outliers_are_made_smaller() -> None:
    """Told of inputs a hundred times as large as the others, a quantised layer loses far less of
    the others."""
    weight, bias = torch.randn(48, 64), torch.zeros(48)
    largest = torch.ones(64)
    largest[:2] = 100
    x = torch.rand(40, 64) * largest
    wanted = F.linear(x, weight, bias)
    told, untold = (
        (layer(x) - wanted).norm()
        for layer in (Quantized(weight, bias, largest=largest), Quantized(weight, bias))
    )
    assert told < untold / 2


@torch_has_it
def test_a_row_of_a_layer_is_its_own() -> None:
    """A row of a quantised layer is to the bit what it is alone, beside rows a thousand times as
    large too."""
    layer = Quantized(torch.randn(48, 64), torch.randn(48))
    x = torch.randn(40, 64) * torch.logspace(0, 3, 40).unsqueeze(1)
    together = layer(x)
    assert all(torch.equal(layer(x[i : i + 1])[0], together[i]) for i in range(40))


@torch_has_it
def test_zeros_and_nan() -> None:
    """A row of zeros gives the bias, NaN and infinity nothing finite."""
    bias = torch.randn(8)
    x = torch.zeros(3, 16)
    x[1, 3], x[2, 3] = torch.nan, torch.inf
    zeros, nan, infinite = Quantized(torch.randn(8, 16), bias)(x)
    torch.testing.assert_close(zeros, bias)
    assert not nan.isfinite().any()
    assert not infinite.isfinite().any()


def test_a_table() -> None:
    """Rows of a quantised table are within half a step of the float32 ones, a row of zeros is
    exact."""
    weight = torch.randn(10, 32) * torch.logspace(-3, 1, 10).unsqueeze(1)
    weight[4] = 0
    ids = torch.tensor([4, 9, 0, 9])
    steps = weight[ids].abs().amax(dim=1, keepdim=True) / 127
    assert ((QuantizedTable(weight)(ids) - weight[ids]).abs() <= 0.51 * steps).all()


def test_a_quarter_of_the_memory(embedded: Backbone, kernels: str) -> None:
    """The embedded backbone takes 0.28 of its float32 bytes in int8."""
    exact, rough = (
        engine_of(embedded, kernels, dtype).encoder.bytes for dtype in (torch.float32, torch.int8)
    )
    assert 0.25 < rough / exact < 0.28


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_what_was_loaded_is_let_go(dtype: torch.dtype, kernels: str, bert_folder: Path) -> None:
    """Once the engine is made, nothing keeps the memory, or the file, that the backbone was loaded
    into."""
    backbone = backbones.load(str(bert_folder))
    memory = []
    for parameter in backbone.encoder.parameters():
        array = parameter.numpy().copy()
        parameter.data = torch.from_numpy(array)  # a tensor over this array keeps it
        memory.append(weakref.ref(array))
        del array
    assert all(array() is not None for array in memory)
    engine = engine_of(backbone, kernels, dtype)
    del backbone, parameter
    gc.collect()
    assert not any(array() is not None for array in memory)
    assert engine.encoder.bytes > 0


@pytest.mark.parametrize(
    ("capabilities", "said"),
    [
        ({"avx512_vnni": False, "architecture": "x86_64"}, "x86_64"),
        ({"architecture": "aarch64"}, "aarch64"),
    ],
)
def test_a_processor_without_it(
    capabilities: dict[str, object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For torch's operators a processor without the instructions is refused in one sentence that
    names it."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    with pytest.raises(InvalidSettings) as refusal:
        create_app(Settings(dtype="int8", device="cpu", kernels="torch", store=tmp_path))
    problem = f"this processor ({said}) lacks AVX512-VNNI; expected one with it, or another dtype"
    assert str(refusal.value) == f"setting ADAMIX_DTYPE is 'int8', but {problem}"


def test_a_gpu() -> None:
    """A GPU is no device for int8."""
    assert quantized.lacking(torch.device("cuda")) == "the device is 'cuda'; expected cpu"


def test_a_server(
    client: httpx2.Client, adapter_bytes: Callable[..., bytes], kernels: str, tmp_path: Path
) -> None:
    """A server in int8 says which kernels compute, takes an upload, answers as one in float32 does
    but for rounding, and tells what it holds."""
    with (
        running(tmp_path / "store", dtype="int8", kernels=kernels) as server,
        server.client() as rough,
    ):
        for task in TASKS:
            assert rough.post("/adapters", files={"file": adapter_bytes(task)}).status_code == 201
        found, expected = (
            one.post(
                "/predict?task=topics",
                json={**TEXTS, "parameters": {"top_k": 5, "function_to_apply": "none"}},
            ).json()
            for one in (rough, client)
        )
        storage, exact = (one.get("/storage").json() for one in (rough, client))
    (line,) = [line for line in server.lines if line["event"] == "kernels chosen"]
    assert line["kernels"].split()[0] == kernels
    assert line["reason"] == "asked for"
    for row, wanted in zip(found, expected, strict=True):
        scores, others = (
            {entry["label"]: entry["score"] for entry in entries} for entries in (row, wanted)
        )
        assert scores == pytest.approx(others, abs=0.1 * max(1.0, *map(abs, others.values())))
        assert scores != others
    assert storage["dtype"] == "int8"
    assert storage["backbone_bytes"] < 0.28 * exact["backbone_bytes"]

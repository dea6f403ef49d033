"""The GPU's kernels against the plain formulas: in Triton's interpreter where there is no GPU, else
compiled on it."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.file import Adapter, parse
from adapters.spec import LoraSite
from service.engine.adaptation import adaptation_of
from service.engine.encoder import PackedEncoder
from service.engine.engine import Engine
from service.engine.gpu.tables import Tables
from service.engine.heads import classify
from service.engine.kinds.bottleneck import Bottleneck
from service.engine.kinds.lora import Lora
from service.engine.kinds.registry import ON_CPU
from service.engine.resident import Segment
from service.engine.row import Row
from service.engine.slots import Slots
from tests import formula
from tests.service.interpreter import GPU, NO_GPU
from tests.service.test_encoder import rows_of
from tests.tiny import FURTHER, random_adapter, tiny_backbone

CPU = torch.device("cpu")
DEVICES = [
    pytest.param(
        "cpu",
        marks=pytest.mark.skipif(
            GPU, reason="there is a GPU: the kernels are compiled, not interpreted"
        ),
        id="interpreter",
    ),
    pytest.param("cuda", marks=pytest.mark.skipif(not GPU, reason=NO_GPU), id="gpu"),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# (bottleneck, first layer) of each task
KINDS = [(1, 0), (5, 1), (16, 0), (48, 1), (256, 0)]


# (ranks, scale, first layer) of each task
LORAS: list[tuple[dict[LoraSite, int], float, int]] = [
    ({"query": 1, "up": 3}, 0.5, 0),
    ({"query": 5, "down": 16}, 2.0, 1),
    ({"query": 16}, 0.25, 0),
    ({"query": 48, "up": 64, "down": 1}, 1.0, 1),
    ({"query": 256, "up": 8, "down": 256}, 0.1, 0),
]
# inputs and outputs of a linear module of the tiny backbone
SIZES: dict[LoraSite, tuple[int, int]] = {"query": (40, 40), "up": (40, 80), "down": (80, 40)}


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """Of a width that is no power of two."""
    return backbones.load(
        str(tiny_backbone(tmp_path_factory.mktemp("backbone"), "bert", hidden=40))
    )


@pytest.fixture(scope="module")
def adapters(backbone: Backbone) -> list[Adapter]:
    made = [
        random_adapter(
            backbone, f"task-{i}", ["no", "yes"], bottleneck=r, first_layer=first, seed=i
        )
        for i, (r, first) in enumerate(KINDS)
    ]
    return [parse(data) for _, _, data in made]


@pytest.fixture(scope="module")
def loras(backbone: Backbone) -> list[Adapter]:
    made = [
        random_adapter(
            backbone,
            f"lora-{i}",
            ["no", "yes"],
            ranks=ranks,
            scale=scale,
            first_layer=first,
            seed=i,
        )
        for i, (ranks, scale, first) in enumerate(LORAS)
    ]
    return [parse(data) for _, _, data in made]


def segments_of(
    adapters: Sequence[Adapter], lengths: Sequence[int], device: torch.device, dtype: torch.dtype
) -> list[Segment]:
    """Segment i has `lengths[i]` rows of one token each."""
    residents = Slots(len(adapters), device, dtype).acquire(adapters)
    places = [slice(*ends) for ends in pairwise(accumulate(lengths, initial=0))]
    return [
        Segment(residents[adapter.digest], place, place)
        for adapter, place in zip(adapters, places, strict=True)
    ]


def expected(x: Tensor, segments: Sequence[Segment], layer: int) -> Tensor:
    """The formula in float64, segment by segment, with the weights as they lie on the device."""
    y = x.double().cpu()
    for segment in segments:
        resident = segment.resident
        if layer >= resident.spec.first_layer:
            own, weights = layer - resident.spec.first_layer, resident.weights
            assert isinstance(weights, Bottleneck)
            layers = (weights.down, weights.down_bias, weights.up, weights.up_bias)
            y[segment.tokens] = formula.bottleneck(
                *(tensor[own].cpu() for tensor in layers), y[segment.tokens]
            )
    return y


def near(dtype: torch.dtype) -> dict[str, float]:
    error = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps * 8
    return {"rtol": error, "atol": error}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "lengths", [[1, 70, 3, 16, 40], [2000, 1, 1, 1, 70]], ids=["few tokens", "many tokens"]
)
def test_adapters_of_all_tasks_in_one_launch(
    fused: ModuleType,
    device: torch.device,
    adapters: list[Adapter],
    dtype: torch.dtype,
    lengths: list[int],
) -> None:
    """Each row gets its adapter's formula, of any bottleneck, in layers that this adapts, and is
    left alone in others."""
    segments = segments_of(adapters, lengths, device, dtype)
    rows = sum(lengths) + 3
    adaptation = adaptation_of(segments, rows, fused.ON_GPU)
    for layer in (0, 1):
        x = torch.randn(rows, 40).to(device, dtype)
        found = x.clone()
        adaptation.at(layer)["feed_forward"](x, found)
        torch.testing.assert_close(
            found.cpu().double(), expected(x, segments, layer), **near(dtype)
        )
        bare = [
            i
            for segment in segments
            if segment.resident.spec.first_layer > layer
            for i in range(rows)[segment.tokens]
        ]
        bare += range(sum(lengths), rows)
        assert torch.equal(found[bare], x[bare])


def updated(
    x: Tensor, y: Tensor, segments: Sequence[Segment], layer: int, site: LoraSite
) -> Tensor:
    """`y + scale · B·A·x` in float64, segment by segment, with the weights as they lie on the
    device."""
    y = y.double().cpu()
    for segment in segments:
        weights, first = segment.resident.weights, segment.resident.spec.first_layer
        assert isinstance(weights, Lora)
        if layer >= first and site in weights.pairs:
            a, b = (side[layer - first].cpu() for side in weights.pairs[site])
            change = formula.lora(weights.scale, a, b)
            y[segment.tokens] += x[segment.tokens].double().cpu() @ change.T
    return y


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "lengths", [[1, 70, 3, 16, 40], [2000, 1, 1, 1, 70]], ids=["few tokens", "many tokens"]
)
def test_lora_of_all_tasks_in_one_launch_a_site(
    fused: ModuleType,
    device: torch.device,
    loras: list[Adapter],
    dtype: torch.dtype,
    lengths: list[int],
) -> None:
    """Each row gets its LoRA adapter's formula, of any rank, at the sites and in the layers that
    this has, also where the output is a slice of columns; other rows and columns are left alone."""
    segments = segments_of(loras, lengths, device, dtype)
    rows = sum(lengths) + 3
    adaptation = adaptation_of(segments, rows, fused.ON_GPU)
    for layer in (0, 1):
        sites = adaptation.at(layer)
        assert sites.keys() == SIZES.keys()
        for site, (inputs, outputs) in SIZES.items():
            x = torch.randn(rows, inputs).to(device, dtype)
            wide = torch.randn(rows, 3 * outputs).to(device, dtype)
            found = wide.clone()
            of = slice(outputs, 2 * outputs)
            sites[site](x, found[:, of])
            torch.testing.assert_close(
                found[:, of].cpu().double(),
                updated(x, wide[:, of], segments, layer, site),
                **near(dtype),
            )
            found[:, of] = wide[:, of]
            assert torch.equal(found, wide)
        x, y = (torch.randn(rows, 40).to(device, dtype) for _ in range(2))
        found = y.clone()
        sites["query"](x, found)
        bare = [
            i
            for segment in segments
            if segment.resident.spec.first_layer > layer
            for i in range(rows)[segment.tokens]
        ]
        bare += range(sum(lengths), rows)
        assert torch.equal(found[bare], y[bare])


@torch.inference_mode()
def test_both_kinds_on_a_gpu(
    fused: ModuleType, device: torch.device, adapters: list[Adapter], loras: list[Adapter]
) -> None:
    """Tasks of both kinds side by side get from the GPU's kernels what the CPU's products give
    them, at every site."""
    chosen = [adapters[1], loras[4], loras[1], adapters[3], loras[0]]
    lengths = [5, 33, 1, 17, 8]
    inputs = {site: torch.randn(70, size) for site, (size, _) in SIZES.items()}
    outputs = {site: torch.randn(70, size) for site, (_, size) in SIZES.items()}
    inputs["feed_forward"] = outputs["feed_forward"] = torch.randn(70, 40)
    found = []
    for where, combine in ((device, fused.ON_GPU), (CPU, ON_CPU)):
        segments = segments_of(chosen, lengths, where, torch.float32)
        sites = adaptation_of(segments, 70, combine).at(1)
        assert sites.keys() == outputs.keys()
        changed = {site: y.to(where, copy=True) for site, y in outputs.items()}
        for site, add in sites.items():
            add(inputs[site].to(where), changed[site])
        found.append({site: y.cpu() for site, y in changed.items()})
    for site, y in found[0].items():
        assert not torch.equal(y, outputs[site])
        torch.testing.assert_close(y, found[1][site], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("family", [*FURTHER, "xlm-roberta"])
@torch.inference_mode()
def test_families(fused: ModuleType, device: torch.device, tmp_path: Path, family: str) -> None:
    """The encoder of each further family has by the kernels, at every site that it has, the hidden
    states that it has by the CPU's products."""
    backbone = backbones.load(str(tiny_backbone(tmp_path, family)))
    places: list[LoraSite] = list(backbone.family.places)
    made = [
        random_adapter(backbone, "bottleneck", ["no", "yes"], seed=1),
        random_adapter(backbone, "all", ["no", "yes"], ranks=dict.fromkeys(places, 3), seed=2),
        random_adapter(backbone, "later", ["no", "yes"], first_layer=1, seed=3),
        random_adapter(backbone, "some", ["no", "yes"], ranks={"query": 2, "down": 5}, seed=4),
    ]
    adapters, lengths = [parse(data) for _, _, data in made], [5, 33, 1, 17]
    rows = [(row.ids, [0] * len(row.ids)) for row in rows_of(backbone, lengths)]
    found = []
    for where, combine in ((device, fused.ON_GPU), (CPU, ON_CPU)):
        # exact attention on both: flash attention has no float32
        encoder = PackedEncoder(backbone, where, torch.float32)
        batch = encoder.pack(rows)
        segments = segments_of(adapters, lengths, where, torch.float32)
        adaptation = adaptation_of(segments, len(batch.ids), combine)
        found.append(encoder.forward(batch, adaptation).cpu())
        assert not torch.equal(found[-1], encoder.forward(batch).cpu())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(
    parts=st.lists(
        st.tuples(st.integers(0, len(KINDS) - 1), st.integers(1, 40)),
        min_size=1,
        unique_by=lambda part: part[0],
    ),
    layer=st.integers(0, 1),
    spare=st.integers(0, 5),
)
def test_any_segmentation(
    fused: ModuleType, adapters: list[Adapter], parts: list[tuple[int, int]], layer: int, spare: int
) -> None:
    """Whatever tasks lie side by side, and however long, the GPU's rows are the CPU's."""
    chosen, lengths = [adapters[i] for i, _ in parts], [length for _, length in parts]
    device = torch.device("cuda" if GPU else "cpu")
    x = torch.randn(sum(lengths) + spare, 40)
    found = x.to(device, copy=True)
    for where, combine, y in ((device, fused.ON_GPU, found), (CPU, ON_CPU, x)):
        segments = segments_of(chosen, lengths, where, torch.float32)
        for add in adaptation_of(segments, len(y), combine).at(layer).values():
            add(y, y)
    torch.testing.assert_close(found.cpu(), x, **near(torch.float32))


def test_every_kernel_is_compiled_before_the_first_batch(
    fused: ModuleType, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each size that a batch can ask a kernel for has been launched once, on nothing, in each
    dtype."""
    launched: list[tuple[str, int, int]] = []

    def noted(name: str) -> None:
        launch = getattr(fused.kernels, name)

        def noting(x: Tensor, other: Any, *rest: Any) -> Any:
            tables = [argument for argument in rest if isinstance(argument, Tables)]
            height, widest = (tables[0].height, tables[0].widest) if tables else (0, 0)
            launched.append((name, height, widest))
            return launch(x, other, *rest)

        monkeypatch.setattr(fused.kernels, name, noting)

    for name in ("adapt", "low_rank", "grouped", "add_norm"):
        noted(name)
    for dtype in DTYPES:
        launched.clear()
        fused.compile_all(40, dtype, device)
        adapters = {
            (name, height, inner)
            for name in ("adapt", "low_rank")
            for height in (fused.SMALL, fused.LARGE)
            for inner in fused.kernels.INNERS
        }
        heads = {("grouped", fused.SMALL, columns) for columns in fused.kernels.COLUMNS}
        assert set(launched) == adapters | heads | {("add_norm", 0, 0)}


def test_heads_of_all_tasks(fused: ModuleType, device: torch.device, backbone: Backbone) -> None:
    """Heads of any label count, pooling and form give each row what they give segment by
    segment."""
    made = [
        random_adapter(backbone, "value", ["score"], problem_type="regression", seed=1),
        random_adapter(backbone, "two", ["no", "yes"], pooling="cls", dense=True, seed=2),
        random_adapter(backbone, "many", [f"label {i}" for i in range(70)], dense=True, seed=3),
        random_adapter(
            backbone, "prompt", ["no", "yes", "maybe"], template="{text} it is {mask}", seed=4
        ),
        random_adapter(backbone, "five", list("abcde"), pooling="cls", seed=5),
    ]
    segments = segments_of(
        [parse(data) for _, _, data in made], [1, 20, 3, 2, 1], device, torch.float32
    )
    pooled = {pooling: torch.randn(27, 40, device=device) for pooling in ("mean", "cls", "mask")}
    for chosen in (segments, segments[1:2], segments[3:4], segments[4:]):
        found, plain = fused.fused_classify(pooled, chosen, 1e-5), classify(pooled, chosen, 1e-5)
        assert [len(row) for row in found] == [len(row) for row in plain]
        for one, other in zip(found, plain, strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [40, 384, 768, 1024])
def test_residual_and_norm(
    fused: ModuleType, device: torch.device, dtype: torch.dtype, width: int
) -> None:
    """The sum's LayerNorm is that of float64 to the last bits of its dtype, at any width."""
    y, x = (torch.randn(3, width).to(device, dtype) for _ in range(2))
    weight, bias = (torch.randn(width).to(device, dtype) for _ in range(2))
    found = fused.kernels.add_norm(y, x, weight, bias, 1e-5)
    plain = F.layer_norm(y.double() + x.double(), (width,), weight.double(), bias.double(), 1e-5)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), plain, **near(dtype))


def test_the_kernels_compile_for_a_gpu(
    fused: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is interpreted here compiles for an H100 (sm_90), as each launch asks for it, within its
    shared memory."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    spec = importlib.util.spec_from_file_location("compiled_kernels", fused.kernels.__file__)
    assert spec is not None
    assert spec.loader is not None
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
    shared = _compiled_instead_of_launched(monkeypatch)
    # Of the kernels that `compile_all` launches, some of each kind: all of them take half a minute
    # a dtype.
    for dtype, bottleneck, height in (
        (torch.bfloat16, 16, 64),
        (torch.float16, 256, 64),
        (torch.float32, 16, 16),
    ):
        x = torch.zeros(1, 384, dtype=dtype)
        kernels.adapt(
            x, 3, Tables.of([slice(0, 1)], [(0,) * 6], CPU, height=height, widest=bottleneck)
        )
        qkv = torch.zeros(1, 3, 384, dtype=dtype)
        kernels.low_rank(
            x,
            qkv[:, 1],
            3,
            Tables.of([slice(0, 1)], [(0,) * 6], CPU, height=height, widest=bottleneck),
        )
        kernels.add_norm(x, x, x[0], x[0], 1e-5)
    kernels.grouped(
        torch.zeros(1, 3), 384, Tables.of([slice(0, 1)], [(0,) * 4], CPU, height=16, widest=3)
    )
    assert len(shared) == 10
    assert max(shared) <= 99 * 1024  # what a program may have on cards of other kinds too


def _compiled_instead_of_launched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Launches compile for a card that need not be there; gives the shared memory of each."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction, mangle_type

    shared: list[int] = []

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:  # noqa: ARG001 - Triton passes them
        named = {name: options.pop(name) for name in kernel.arg_names if name in options}
        arguments = inspect.signature(kernel.fn).bind(*args, **named).arguments
        constants = {
            param.name: arguments[param.name] for param in kernel.params if param.is_constexpr
        }
        types = {
            name: "constexpr" if name in constants else mangle_type(value)
            for name, value in arguments.items()
        }
        aligned = {
            (i,): [["tt.divisibility", 16]]
            for i, value in enumerate(arguments.values())
            if torch.is_tensor(value)
        }
        source = ASTSource(kernel, types, constants, aligned)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        assert compiled.asm["cubin"]
        shared.append(compiled.metadata.shared)

    monkeypatch.setattr(JITFunction, "run", run)
    return shared


@pytest.mark.skipif(not GPU, reason=NO_GPU)
@pytest.mark.parametrize(
    ("dtype", "error"),
    [(torch.float32, 1e-4), (torch.float16, 1e-2), (torch.bfloat16, 6e-2)],
    ids=str,
)
def test_the_engine_on_a_gpu(embedded: Backbone, dtype: torch.dtype, error: float) -> None:
    """On a GPU rows of several tasks get the answers of the CPU's float32 engine, up to the dtype's
    rounding."""
    made = [
        random_adapter(
            embedded, "value", ["score"], problem_type="regression", bottleneck=5, seed=1
        ),
        random_adapter(
            embedded, "two", ["no", "yes"], pooling="cls", dense=True, first_layer=2, seed=2
        ),
        random_adapter(embedded, "five", list("abcde"), bottleneck=48, pooling="pooler", seed=3),
        random_adapter(embedded, "some", ["a", "b", "c"], ranks={"query": 8, "value": 8}, seed=4),
        random_adapter(embedded, "inner", ["a", "b"], ranks={"up": 64, "down": 5}, seed=5),
    ]
    adapters = [parse(data) for _, _, data in made]
    texts = rows_of(embedded, [7, 1, 30, 12, 12, 64, 5, 3, 9])
    rows = [Row(adapters[i % 5], text.ids, text.types) for i, text in enumerate(texts)]
    gpu = torch.device("cuda")
    found = Engine(embedded, Slots(5, gpu, dtype), gpu, dtype).run(rows)
    plain = Engine(embedded, Slots(5, CPU, torch.float32), CPU, torch.float32).run(rows)
    for one, other in zip(found, plain, strict=True):
        assert one == pytest.approx(other, rel=error, abs=error * max(map(abs, other)) + error)

"""Passes of fixed sizes that are recorded once and replayed, in Triton's interpreter; on a GPU also
as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.file import Adapter, parse
from service.engine.adaptation import adaptation_of
from service.engine.attention import by_groups
from service.engine.encoder import PackedEncoder
from service.engine.engine import Engine
from service.engine.packed import Packed
from service.engine.row import Row
from service.engine.slots import Slots
from tests.service.interpreter import GPU, NO_GPU
from tests.service.test_encoder import rows_of
from tests.service.test_kernels import segments_of
from tests.tiny import random_adapter, tiny_backbone

CPU = torch.device("cpu")
LADDER = [(16, 2), (32, 4)]


# ModernBERT's window is shorter than the longest row here.
@pytest.fixture(scope="module", params=["bert", "distilbert", "modernbert"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    changes = {"local_attention": 10} if request.param == "modernbert" else {}
    folder = tiny_backbone(tmp_path_factory.mktemp("backbone"), request.param, **changes)
    return backbones.load(str(folder))


@pytest.fixture(scope="module")
def adapters(backbone: Backbone) -> list[Adapter]:
    made = [
        random_adapter(backbone, f"task-{r}", ["no", "yes"], bottleneck=r, seed=r)[2]
        for r in (4, 16, 100, 200)
    ]
    return [parse(data) for data in made]


def row_by_row(qkv: Tensor, batch: Packed, heads: int, *, window: int | None = None) -> Tensor:
    """Attention by the rows' bounds, as they are on the device by then; tokens of no row get what
    nobody may see."""
    out = qkv.new_full((len(qkv), qkv.shape[1] // 3), float("nan"))
    bounds = batch.bounds.tolist()
    for start, end in pairwise(bounds):
        q, k, v = qkv[start:end].unflatten(1, (3, heads, out.shape[1] // heads)).permute(1, 2, 0, 3)
        places = torch.arange(end - start)
        near = (places[:, None] - places).abs() <= (window or len(places))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=near)
        out[start:end] = attended.transpose(0, 1).flatten(1)
    return out


def replayed(run: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """What a CUDA graph does: the same pass again, over the same buffers."""
    hidden = run()

    def replay() -> None:
        hidden.copy_(run())

    return hidden, replay


@pytest.mark.skipif(GPU, reason="there is a GPU: passes are recorded on it")
@torch.inference_mode()
def test_replays_are_the_batches_own_passes(
    fused: ModuleType, backbone: Backbone, adapters: list[Adapter]
) -> None:
    """Batches of any sizes, one after the other, get from the recordings what they get without,
    whatever was there before; one that none has room for is told so."""
    from service.engine.gpu.graphs import Graphs

    encoder, plain = (
        PackedEncoder(backbone, CPU, torch.float32, attention)
        for attention in (row_by_row, by_groups)
    )
    progress: list[tuple[int, int]] = []
    graphs = Graphs(
        encoder, LADDER, record=replayed, recorded=lambda done, of: progress.append((done, of))
    )
    assert progress == [(i, 6) for i in range(1, 7)]
    for lengths, chosen in (
        ([32], [1]),
        ([9, 3, 8, 12], [0, 1, 2, 3]),
        ([1], [2]),
        ([5, 4], [3, 0]),
        ([16], [0]),
        ([1, 1, 1], [1, 2, 3]),
    ):
        rows = [(row.ids, row.types) for row in rows_of(backbone, lengths, seed=sum(lengths))]
        segments = segments_of([adapters[i] for i in chosen], lengths, CPU, torch.float32)
        batch = encoder.pack(rows)
        found = graphs.forward(batch, adaptation_of(segments, len(batch.ids), fused.ON_GPU))
        batch = plain.pack(rows)
        expected = plain.forward(batch, adaptation_of(segments, len(batch.ids), fused.ON_GPU))
        assert found is not None
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for lengths, chosen in (([33], [0]), ([1, 1, 1, 1, 1], [0, 1, 2, 3, 0])):
        batch = encoder.pack([(row.ids, row.types) for row in rows_of(backbone, lengths)])
        segments = segments_of([adapters[i] for i in chosen], lengths, CPU, torch.float32)
        assert graphs.forward(batch, adaptation_of(segments, len(batch.ids), fused.ON_GPU)) is None


@pytest.mark.skipif(not GPU, reason=NO_GPU)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_graphs_on_a_gpu(backbone: Backbone, adapters: list[Adapter], dtype: torch.dtype) -> None:
    """An engine with CUDA graphs gives the logits of one without, batch after batch of any size."""
    gpu = torch.device("cuda")
    with_graphs, without = (
        Engine(backbone, Slots(4, gpu, dtype), gpu, dtype, graphs=graphs)
        for graphs in (True, False)
    )
    for lengths in ([7], [30, 1, 12], [3] * 40, [32] * 20, [5], [32] * 100):
        rows = [
            Row(adapters[i % 4], row.ids, row.types)
            for i, row in enumerate(rows_of(backbone, lengths))
        ]
        for one, other in zip(with_graphs.run(rows), without.run(rows), strict=True):
            assert one == pytest.approx(
                other, rel=0.02, abs=0.15 if dtype == torch.bfloat16 else 0.03
            )

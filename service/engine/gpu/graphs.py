"""Forward passes of few tokens, recorded once as CUDA graphs: a short text does not pay for
hundreds of launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from service.engine.encoder import PackedEncoder
from service.engine.gpu import kernels
from service.engine.gpu.fused import SMALL, FusedAdaptation
from service.engine.gpu.tables import Tables
from service.engine.packed import Adapt, Packed

# (tokens, rows) that a recording has room for. Beyond the last one the card is slower than Python's
# launches.
LADDER = ((32, 4), (64, 8), (128, 16), (256, 32), (512, 64), (1024, 128), (2048, 256))

Record = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]
"""Given a pass, where its result lies and how to run it again on what its inputs hold by then."""


@dataclass(frozen=True)
class _Recording:
    """Buffers of fixed sizes, and the pass over them."""

    batch: Packed
    tables: Tables
    hidden: Tensor
    replay: Callable[[], None]

    def holds(self, batch: Packed, tables: Tables) -> bool:
        return (
            batch.tokens <= self.batch.tokens
            and len(batch.lengths) <= len(self.batch.lengths)
            and len(tables.tiles) <= len(self.tables.tiles)
            and tables.widest <= self.tables.widest
        )

    def run(self, batch: Packed, tables: Tables) -> Tensor:
        """What the buffers held before is left behind the batch: tokens of no row, which no other
        reads."""
        buffers = self.batch
        for there, here in zip(_tokens(buffers), _tokens(batch), strict=True):
            there[: len(here)].copy_(here)
        buffers.bounds.fill_(batch.tokens)
        buffers.bounds[: len(batch.bounds)].copy_(batch.bounds)
        self.tables.tiles.zero_()
        self.tables.tiles[: len(tables.tiles)].copy_(tables.tiles)
        self.tables.segments[: len(tables.segments)].copy_(tables.segments)
        self.replay()
        return self.hidden[: batch.tokens]


class Graphs:
    """Recordings of one encoder's pass, by size. For attention that reads the rows' bounds on the
    device."""

    def __init__(
        self,
        encoder: PackedEncoder,
        ladder: Sequence[tuple[int, int]] = LADDER,
        *,
        record: Record | None = None,
        recorded: Callable[[int, int], None] = lambda _done, _all: None,
    ) -> None:
        """Records all of `ladder` for each size of bottleneck; `recorded` is told how many of how
        many, after each."""
        self._recordings: list[_Recording] = []
        record = record or _Recorder()
        sizes = [
            (tokens, rows, inner) for tokens, rows in sorted(ladder) for inner in kernels.INNERS
        ]
        # the largest first: the others' memory is a part of its
        for tokens, rows, inner in reversed(sizes):
            self._recordings.insert(0, _recording(encoder, tokens, rows, inner, record))
            recorded(len(self._recordings), len(sizes))

    def forward(self, batch: Packed, adapt: Adapt) -> Tensor | None:
        """The last hidden state, `[tokens, d]`, until the next call; None for a batch that no
        recording has room for."""
        assert isinstance(adapt, FusedAdaptation), "what is recorded are its launches"
        fitting = (each for each in self._recordings if each.holds(batch, adapt.tables))
        recording = next(fitting, None)
        return None if recording is None else recording.run(batch, adapt.tables)


class _Recorder:
    """CUDA's own; all graphs share their memory, as only one of them runs at a time. Their stream
    is this engine's alone: a freed graph may take its stream's cuBLAS workspace along, which others
    of that stream replay on (pytorch#193402)."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it unannotated

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            run()  # what is set up at a first call cannot be recorded
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            hidden = run()
        return hidden, graph.replay


def _tokens(batch: Packed) -> tuple[Tensor, ...]:
    return batch.ids, batch.types, batch.positions


@torch.inference_mode()
def _recording(
    encoder: PackedEncoder, tokens: int, rows: int, inner: int, record: Record
) -> _Recording:
    batch = encoder.filled(tokens, rows)
    tables = Tables.idle(
        tokens // SMALL + rows,
        rows,
        kernels.ADAPTER_COLUMNS,
        encoder.device,
        height=SMALL,
        widest=inner,
    )
    hidden, replay = record(
        lambda: encoder.forward(batch, lambda layer, x: kernels.adapt(x, layer, tables))
    )
    return _Recording(batch, tables, hidden, replay)

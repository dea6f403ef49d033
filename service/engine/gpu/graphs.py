"""Forward passes of few tokens, recorded once as CUDA graphs: a replay is one launch instead of
hundreds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from service.engine.encoder import PackedEncoder
from service.engine.gpu import kernels
from service.engine.gpu.fused import SMALL, FusedBottlenecks, launches
from service.engine.gpu.tables import Tables
from service.engine.packed import Packed
from service.engine.sites import Adaptation, Add, Site

# (tokens, rows) that a recording has room for. Beyond the last one the card takes longer than
# Python's launches.
LADDER = ((32, 4), (64, 8), (128, 16), (256, 32), (512, 64), (1024, 128), (2048, 256))

Record = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]
"""Records a pass. Returns where its result lies, and a call that runs it again on what its buffers
hold by then."""


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
        """The batch's hidden states, until the next call. What the buffers held before stays behind
        the batch's tokens; it belongs to no row, and no row reads it."""
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
    """Recordings of one encoder's pass, by size. Its attention must read the rows' bounds on the
    device."""

    def __init__(
        self,
        encoder: PackedEncoder,
        ladder: Sequence[tuple[int, int]] = LADDER,
        *,
        record: Record | None = None,
        recorded: Callable[[int, int], None] = lambda _done, _all: None,
    ) -> None:
        """Records all of `ladder` for each size of bottleneck; after each, `recorded` is called
        with the number recorded so far and the number in all."""
        self._recordings: list[_Recording] = []
        record = record or _Recorder()
        sizes = [
            (tokens, rows, inner) for tokens, rows in sorted(ladder) for inner in kernels.INNERS
        ]
        # the largest first: the others then share its memory
        for tokens, rows, inner in reversed(sizes):
            self._recordings.insert(0, _recording(encoder, tokens, rows, inner, record))
            recorded(len(self._recordings), len(sizes))

    def forward(self, batch: Packed, adaptation: Adaptation) -> Tensor | None:
        """The last hidden state, `[tokens, d]`, until the next call; None if no recording has room
        for the batch, or if it has adapters that are not recorded."""
        if not isinstance(adaptation, FusedBottlenecks):
            return None
        tables = adaptation.tables
        recording = next((each for each in self._recordings if each.holds(batch, tables)), None)
        return None if recording is None else recording.run(batch, tables)


class _Recorded:
    """The bottlenecks that the tables hold at each replay."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    @property
    def inner_rows(self) -> int:
        return 0

    def at(self, layer: int) -> Mapping[Site, Add]:
        return launches(layer, self._tables)


class _Recorder:
    """Records CUDA graphs. All share their memory, because only one runs at a time. Their stream is
    this engine's alone: a freed graph may free its stream's cuBLAS workspace, on which the stream's
    other graphs replay (pytorch#193402)."""

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
    hidden, replay = record(lambda: encoder.forward(batch, _Recorded(tables)))
    return _Recording(batch, tables, hidden, replay)

"""Service: what the routes use, wired once by `app`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from adapters.entry import Entry
from adapters.file import Adapter
from adapters.parity import check_backbone, check_parity
from adapters.spec import BackboneRef
from adapters.store import Store
from adapters.text import TextInput, Tokens
from service.auth import Guard
from service.batcher import Batcher, Closed, Outcome
from service.engine import Row
from service.loader import Loader
from service.metrics import Metrics
from service.schemas import AdapterBytes, Storage
from service.slots import Slots
from service.tokenizer import RequestTokenizer

if TYPE_CHECKING:  # OpenTelemetry's SDK is an extra
    from service.tracing import Tracing

Logits = list[float]
Tier = Literal["device", "host", "disk"]
NAMED = 5  # of all tasks, in a sentence


@dataclass(frozen=True)
class ServedBackbone:
    """The backbone as it runs: `dtype` and `bytes` are those on the device."""

    reference: BackboneRef
    max_length: int
    has_pooler: bool
    has_mask: bool
    dtype: str
    bytes: int


@dataclass(eq=False)
class Service:
    """One backbone and its adapters, ready to predict."""

    backbone: ServedBackbone
    store: Store
    loader: Loader
    slots: Slots
    tokenizer: RequestTokenizer
    batcher: Batcher[Row, Logits]
    metrics: Metrics
    guard: Guard
    max_inputs: int
    device: str
    tracing: Tracing | None
    stopping: bool = False

    def check_ready(self) -> None:
        """Raises Closed once the service has been asked to stop."""
        if self.stopping:
            raise Closed

    def expected_path(self) -> str:
        """What a request for predictions that names no task should have asked, with some of the tasks that there are."""
        names = [entry.task for entry in self.store.entries()]
        some = [*map(repr, names[:NAMED]), *("…" for _ in names[NAMED : NAMED + 1])]
        tasks = f"{len(names)} task{'' if len(names) == 1 else 's'}"
        return f"POST /predict?task=NAME ({tasks}{': ' if some else ''}{', '.join(some)})"

    def check_fits(self, adapter: Adapter) -> None:
        """Raises BackboneMismatch if this backbone cannot run the adapter."""
        backbone = self.backbone
        check_backbone(
            adapter,
            backbone.reference,
            max_length=backbone.max_length,
            has_pooler=backbone.has_pooler,
            has_mask=backbone.has_mask,
        )

    async def rows(self, adapter: Adapter, texts: Sequence[TextInput], *, truncate: bool) -> list[Row]:
        """Tokenised rows of one adapter. Raises InputTooLong."""
        spec = adapter.spec
        tokens = await self.tokenizer.encode(texts, spec.max_length, spec.template, truncate=truncate)
        return _rows(adapter, tokens)

    async def windows(self, adapter: Adapter, texts: Sequence[TextInput], stride: int | None, limit: int) -> list[list[Row]]:
        """Each text as one row or as windows, at most `limit` rows in all. Raises InvalidWindow or TooManyWindows."""
        spec = adapter.spec
        tokens = await self.tokenizer.windows(texts, spec.max_length, spec.template, stride=stride, limit=limit)
        return [_rows(adapter, windows) for windows in tokens]

    async def self_test(self, adapter: Adapter) -> None:
        """Replay the adapter's probe as any request; raises BackboneMismatch if its logits are not the trainer's."""
        self.check_fits(adapter)
        rows = await self.rows(adapter, adapter.spec.probe.inputs, truncate=True)  # type: ignore[arg-type]  # 1 or 2 texts
        outcomes: list[Outcome[Logits]] = await self.batcher.submit(rows)
        check_parity(adapter, [outcome.value for outcome in outcomes], self.backbone.dtype)

    def tier(self, entry: Entry) -> Tier:
        """Where a task's active adapter is now."""
        if entry.active is not None and self.slots.resident(entry.active):
            return "device"
        return "host" if entry.active is not None and self.store.cached(entry.active) else "disk"

    def storage(self, *, listed: bool = True) -> Storage:
        """What the one copy takes, and what a copy per task would; each adapter's bytes if they are to be listed."""
        entries = self.store.entries()
        sizes = [entry.active_version.bytes if entry.active_version else 0 for entry in entries]
        total = self.backbone.bytes + sum(sizes)
        copies = self.backbone.bytes * len(entries)
        return Storage(
            backbone=self.backbone.reference.name,
            dtype=self.backbone.dtype,
            tasks=len(entries),
            backbone_bytes=self.backbone.bytes,
            adapters_bytes=sum(sizes),
            total_bytes=total,
            full_copies_bytes=copies,
            saved_bytes=copies - total,
            ratio=round(copies / total, 3),
            adapters=[
                AdapterBytes(task=e.task, version=e.active_version.short if e.active_version else None, bytes=size)
                for e, size in zip(entries, sizes, strict=True)
                if listed
            ],
        )

    def gauges(self) -> tuple[dict[str, float], Iterable[tuple[str, str]]]:
        """What `StateCollector` shows."""
        storage = self.storage(listed=False)
        names = ("backbone_bytes", "adapters_bytes", "full_copies_bytes", "saved_bytes")
        values: dict[str, float] = {name: getattr(storage, name) for name in names}
        tiers = [(entry.task, self.tier(entry)) for entry in self.store.entries()]
        queue = {"queue_rows": self.batcher.queued_rows, "queue_max_rows": self.batcher.max_queue_rows}
        return {**queue, **values}, tiers


def _rows(adapter: Adapter, tokens: Sequence[Tokens]) -> list[Row]:
    return [Row(adapter, row.ids, row.types, row.mask) for row in tokens]

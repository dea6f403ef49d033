"""Service: what the routes use, wired once by `app`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import structlog

from adapters.entry import Entry
from adapters.errors import BackboneMismatch, DamagedAdapter
from adapters.file import Adapter
from adapters.parity import check_backbone, check_parity
from adapters.spec import BackboneRef
from adapters.store import Store
from adapters.text import Tokens
from service.batcher import Batcher, Closed, Outcome
from service.engine.row import Row
from service.engine.slots import Slots
from service.http.auth import Guard
from service.http.schemas import AdapterBytes, InvalidRequest, Storage
from service.loader import Loader
from service.predictor import Logits
from service.telemetry.metrics import Metrics
from service.tokenizer import RequestTokenizer

if TYPE_CHECKING:  # OpenTelemetry's SDK is an extra
    from service.telemetry.tracing import Tracing

Tier = Literal["device", "host", "disk"]
NAMED = 5  # of all tasks, in a sentence

log = structlog.get_logger("service")


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

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run batches within; at its end what is queued is answered, and no more is taken."""
        self.batcher.start()
        try:
            yield
        finally:
            self.stopping = True
            await self.batcher.close()
            if self.tracing is not None:
                await self.tracing.close()
            log.info("stopped")

    def check_ready(self) -> None:
        """Raises Closed once the service has been asked to stop."""
        if self.stopping:
            raise Closed

    @property
    def dtype(self) -> str:
        return self.backbone.dtype

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Raises InvalidRequest where none is named, UnknownTask for one that there is not."""
        if not tasks:
            raise InvalidRequest(f"the request names no task; expected {self.expected_path()}")
        for task in tasks:
            self.store.entry(task)

    async def admit(self, task: str, version: str | None) -> Adapter:
        """The adapter that a request is admitted with. Raises as `Store.get`, and
        BackboneMismatch."""
        digest = self.store.find(task, version).digest
        try:
            return await self.bring(task, digest)
        except (DamagedAdapter, BackboneMismatch):
            self.metrics.load_failures.inc()
            raise

    async def bring(self, task: str, digest: str) -> Adapter:
        """One version of a task, checked and on its way to the device. Raises as `admit`, and
        counts nothing."""
        adapter = await self.loader.load(task, digest)
        self.check_fits(adapter)
        await self.loader.prefetch(adapter)
        return adapter

    async def run(self, rows: Sequence[tuple[Adapter, Tokens]]) -> list[Outcome[Logits]]:
        """Queue a request's rows together and wait for their logits. Raises as `Batcher.submit`."""
        return await self.batcher.submit(
            [Row(adapter, row.ids, row.types, row.mask) for adapter, row in rows]
        )

    def tokenized(self, seconds: float) -> None:
        """Time one request's tokenisation."""
        self.metrics.tokenization.observe(seconds)

    def count(self, tasks: Sequence[str], status: int, seconds: float) -> None:
        """Count and time a request for predictions; a task that was deleted meanwhile must not get
        its series back."""
        self.metrics.request([task for task in tasks if task in self.store], status, seconds)

    def expected_path(self) -> str:
        """What a request for predictions that names no task should have asked, with some of the
        tasks that there are."""
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

    async def self_test(self, adapter: Adapter) -> None:
        """Replay the adapter's probe as any request; raises BackboneMismatch if its logits are not
        the trainer's."""
        self.check_fits(adapter)
        spec = adapter.spec
        texts: Any = spec.probe.inputs  # of one or two each, as the spec's check has seen
        tokens = await self.tokenizer.encode(texts, spec.max_length, spec.template, truncate=True)
        outcomes = await self.run([(adapter, row) for row in tokens])
        check_parity(adapter, [outcome.value for outcome in outcomes], self.backbone.dtype)

    def tier(self, entry: Entry) -> Tier:
        """Where a task's active adapter is now."""
        if entry.active is not None and self.slots.resident(entry.active):
            return "device"
        return "host" if entry.active is not None and self.store.cached(entry.active) else "disk"

    def storage(self, *, listed: bool = True) -> Storage:
        """What the one copy takes, and what a copy per task would; each adapter's bytes if they are
        to be listed."""
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
                AdapterBytes(
                    task=e.task,
                    version=e.active_version.short if e.active_version else None,
                    bytes=size,
                )
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
        queue = {
            "queue_rows": self.batcher.queued_rows,
            "queue_max_rows": self.batcher.max_queue_rows,
        }
        return {**queue, **values}, tiers

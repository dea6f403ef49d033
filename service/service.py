"""Service: one backbone and its adapters in this process. `service.app` builds it, the routes use
it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import structlog

from adapters.adapter_store import AdapterStore
from adapters.entry import Entry
from adapters.errors import BackboneMismatch, DamagedAdapter
from adapters.file import Adapter
from adapters.parity import check_backbone, check_parity
from adapters.spec import BackboneRef
from adapters.text import Tokens
from adapters.traffic import Left, place_of
from service.audit import AuditLog, Write
from service.batcher import Batcher, Outcome
from service.engine.row import Row
from service.engine.slots import Slots
from service.keys.keys import Keys
from service.loader import Loader
from service.predictor import Admitted, Logits, Signature
from service.refusals import Closed
from service.replication import Replication
from service.telemetry.metrics import Metrics, State
from service.tokenizer import RequestTokenizer
from service.traffic.rollouts import Choice, Rollouts

if TYPE_CHECKING:  # OpenTelemetry's SDK is an extra
    from service.telemetry.tracing import Tracing

Tier = Literal["device", "host", "disk"]
T = TypeVar("T")

WRITERS = 8  # writes at once; those of one store are made one after the other all the same

log = structlog.get_logger("service")


@dataclass(frozen=True)
class ServedBackbone:
    """The backbone as it runs: `dtype` and `bytes` are those on the device."""

    reference: BackboneRef
    intermediate_size: int
    max_length: int
    has_pooler: bool
    has_mask: bool
    dtype: str
    bytes: int


@dataclass(frozen=True)
class AdapterSize:
    """The bytes of one task's active version; none and 0 where no version is active."""

    task: str
    version: str | None
    bytes: int


@dataclass(frozen=True)
class Storage:
    """What one copy of the backbone takes and saves; all sizes in bytes. `full_copies_bytes` is
    what a backbone per task would take, `ratio` that by `total_bytes`."""

    backbone: str
    dtype: str
    tasks: int
    backbone_bytes: int
    adapters_bytes: int
    total_bytes: int
    full_copies_bytes: int
    saved_bytes: int
    ratio: float
    adapters: list[AdapterSize]


@dataclass(eq=False)
class Service:
    """One backbone and its adapters, ready to predict: the `Predictor` of this process."""

    backbone: ServedBackbone
    store: AdapterStore
    loader: Loader
    slots: Slots
    tokenizer: RequestTokenizer
    batcher: Batcher[Row, Logits]
    metrics: Metrics
    max_inputs: int
    auto_truncate: bool
    device: str
    tracing: Tracing | None
    replication: Replication | None = None  # where the store is in a bucket
    audit_log: AuditLog | None = None
    keys: Keys | None = None  # whose file is read again while the service runs
    stopping: bool = False
    rollouts: Rollouts = field(init=False)
    # of their own, so that writes that wait for a disk or a bucket hold up nothing else
    writers: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(WRITERS, thread_name_prefix="writer")
    )

    def __post_init__(self) -> None:
        self.rollouts = Rollouts(
            self.store,
            held=self._held,
            bring=lambda task, digest: self.bring(task, Choice(digest)),
            offer=lambda admitted, tokens, done: self.batcher.offer(_row(admitted, tokens), done),
            write=self.write,
            rolled_back=self._rolled_back,
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run batches within. At the end queued rows are answered and no more are taken."""
        self.batcher.start()
        if self.keys is not None:
            self.keys.start()
        if self.replication is not None:
            self.replication.start()
        try:
            yield
        finally:
            self.stopping = True
            await self.batcher.close()
            await self.rollouts.close()
            if self.keys is not None:
                self.keys.stop()
            self.writers.shutdown(wait=False, cancel_futures=True)
            if self.replication is not None:
                await asyncio.to_thread(self.replication.stop)
            if self.tracing is not None:
                await self.tracing.close()
            log.info("stopped")

    def check_ready(self) -> None:
        """Raises Closed once the service has been asked to stop."""
        if self.stopping:
            raise Closed

    def check_fresh(self) -> None:
        """Raises Stale where the store is in a bucket that was not read within the lease."""
        if self.replication is not None:
            self.replication.check_fresh()

    async def see(self) -> None:
        """Wait until this replica knows all that was acknowledged before now, as far as its bucket
        can be reached."""
        if self.replication is not None:
            await self.replication.see()

    async def write(self, job: Callable[[], T]) -> T:
        """Write to the store, in a thread. Raises what `job` raises."""
        return await asyncio.get_running_loop().run_in_executor(self.writers, job)

    def audit(self, write: Write) -> None:
        """Append a write to the audit log, if there is one."""
        if self.audit_log is not None:
            self.audit_log.add(write)

    @property
    def dtype(self) -> str:
        return self.backbone.dtype

    def tasks(self) -> list[str]:
        """The names of all tasks, sorted."""
        return [entry.task for entry in self.store.entries()]

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Raises UnknownTask for a task that does not exist."""
        for task in tasks:
            self.store.entry(task)

    async def admit(self, task: str, version: str | None) -> Admitted:
        """The adapter that a request is admitted with. Raises as `Store.get`, and
        BackboneMismatch."""
        return await self._counting(task, self.rollouts.choose(task, version))

    async def route(self, adapter: Admitted, key: bytes) -> Admitted:
        """The version that has the key's place; the one that was admitted, where that is a canary
        that cannot be loaded."""
        task = adapter.signature.task
        choice = self.rollouts.choose(task, None, place_of(task, key))
        if choice.role != "canary":
            return adapter
        try:
            return await self._counting(task, choice)
        except Exception as error:  # whatever it is: the active version answers
            self.rollouts.failed(task, choice.digest, error)
            return adapter

    async def fall_back(self, canary: Admitted) -> Admitted:
        """The active version."""
        return await self.admit(canary.signature.task, None)

    def failed(self, canary: Admitted, error: Exception) -> None:
        """Count a request that a canary could not answer, and the active version could."""
        self.rollouts.failed(canary.signature.task, canary.digest, error)

    async def bring(self, task: str, choice: Choice) -> Admitted:
        """Load one version of a task and start to bring it to the device. Raises as `admit`, and
        counts nothing."""
        adapter = await self.loader.load(task, choice.digest)
        await self.loader.prefetch(adapter)
        return _admitted(adapter, choice)

    async def run(self, rows: Sequence[tuple[Admitted, Tokens]]) -> list[Outcome[Logits]]:
        """Queue a request's rows together and wait for their logits. Raises as `Batcher.submit`,
        and as `Rollouts.ran`."""
        outcomes = await self.batcher.submit([_row(admitted, tokens) for admitted, tokens in rows])
        self.rollouts.ran(rows, outcomes)
        return outcomes

    async def _counting(self, task: str, choice: Choice) -> Admitted:
        """`bring`, and count a file that cannot be served."""
        try:
            return await self.bring(task, choice)
        except (DamagedAdapter, BackboneMismatch):
            self.metrics.load_failures.inc()
            raise

    def _held(self, digest: str) -> Admitted | None:
        """A version that is in memory."""
        adapter = self.store.held(digest)
        return None if adapter is None else _admitted(adapter)

    def _rolled_back(self, task: str, left: Left) -> None:
        """A canary was ended by its rule."""
        self.metrics.rollbacks.inc()
        write = Write("rollback", task, reason=left.reason)
        write.about(left.digest)
        self.audit(write)

    def tokenized(self, seconds: float) -> None:
        """Time one request's tokenisation."""
        self.metrics.tokenization.observe(seconds)

    def count(self, tasks: Sequence[str], status: int, seconds: float) -> None:
        """Count and time a request for predictions. A task that was deleted meanwhile is left out:
        its series must not come back."""
        self.metrics.request([task for task in tasks if task in self.store], status, seconds)

    def check_fits(self, adapter: Adapter) -> None:
        """Raises BackboneMismatch if this backbone cannot run the adapter. The store asks before it
        first keeps an adapter in memory, so no request asks again."""
        backbone = self.backbone
        check_backbone(
            adapter,
            backbone.reference,
            intermediate_size=backbone.intermediate_size,
            max_length=backbone.max_length,
            has_pooler=backbone.has_pooler,
            has_mask=backbone.has_mask,
        )

    async def replay_probe(self, adapter: Adapter) -> None:
        """Replay the adapter's probe as any request; raises BackboneMismatch if its logits are not
        the trainer's."""
        self.check_fits(adapter)
        admitted = _admitted(adapter)
        spec = adapter.spec
        texts: Any = spec.probe.inputs  # one or two texts each: the spec was checked
        tokens = await self.tokenizer.encode(texts, spec.max_length, spec.template, truncate=True)
        outcomes = await self.run([(admitted, row) for row in tokens])
        check_parity(adapter, [outcome.value for outcome in outcomes], self.backbone.dtype)

    def tier(self, entry: Entry) -> Tier:
        """Where a task's active adapter is now."""
        if entry.active is not None and self.slots.resident(entry.active):
            return "device"
        return "host" if entry.active is not None and self.store.cached(entry.active) else "disk"

    def storage(self, entries: Sequence[Entry] | None = None, *, listed: bool = True) -> Storage:
        """What one copy takes, and what a copy per task would, of some tasks or of all; `listed`
        with each adapter's bytes."""
        sizes = [_size(entry) for entry in (self.store.entries() if entries is None else entries)]
        adapters_bytes = sum(size.bytes for size in sizes)
        total = self.backbone.bytes + adapters_bytes
        copies = self.backbone.bytes * len(sizes)
        return Storage(
            backbone=self.backbone.reference.name,
            dtype=self.backbone.dtype,
            tasks=len(sizes),
            backbone_bytes=self.backbone.bytes,
            adapters_bytes=adapters_bytes,
            total_bytes=total,
            full_copies_bytes=copies,
            saved_bytes=copies - total,
            ratio=round(copies / total, 3),
            adapters=sizes if listed else [],
        )

    def state(self) -> State:
        """What the metrics show of it."""
        storage = self.storage(listed=False)
        names = ("backbone_bytes", "adapters_bytes", "full_copies_bytes", "saved_bytes")
        values: dict[str, float] = {name: getattr(storage, name) for name in names}
        tiers = [(entry.task, self.tier(entry)) for entry in self.store.entries()]
        queue = {
            "queue_rows": self.batcher.queued_rows,
            "queue_max_rows": self.batcher.max_queue_rows,
        }
        replication = self.replication
        store = {
            "store_generation": 0 if replication is None else replication.generation,
            "store_age_seconds": 0.0 if replication is None else replication.age,
        }
        keys = {"keys_file_valid": float(self.keys is None or self.keys.valid)}
        return State({**queue, **values, **store, **keys}, tiers, self.slots.held())


def _admitted(adapter: Adapter, choice: Choice | None = None) -> Admitted:
    role, places = (None, 0) if choice is None else (choice.role, choice.places)
    return Admitted(Signature.of(adapter.spec), adapter.digest, adapter, role, places)


def _row(admitted: Admitted, tokens: Tokens) -> Row:
    adapter = admitted.handle
    assert isinstance(adapter, Adapter)  # `bring` put it there
    return Row(adapter, tokens.ids, tokens.types, tokens.mask)


def _size(entry: Entry) -> AdapterSize:
    active = entry.active_version
    if active is None:
        return AdapterSize(entry.task, None, 0)
    return AdapterSize(entry.task, entry.shown(active), active.bytes)

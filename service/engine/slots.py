"""Adapters resident on the device: at most `capacity`, the least recently used is evicted first."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from adapters.file import Adapter
from adapters.spec import KIND_KEYS, Kind, shown
from service.engine.kinds import registry
from service.engine.resident import Head, Pair, Resident
from service.refusals import AdapterNotLoaded


class Slots:
    """The adapters on the device, by their files' digests. One thread runs the batches and
    acquires; any other may prefetch, or ask whether one is `resident`."""

    def __init__(
        self,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        loaded: Callable[[float], None] = lambda _: None,
        evicted: Callable[[], None] = lambda: None,
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        """`loaded` is called with the seconds of each load, `evicted` after each eviction, `failed`
        after each load that raised."""
        self._capacity, self._device, self._dtype = capacity, device, dtype
        self._loaded, self._evicted, self._failed = loaded, evicted, failed
        self._residents: OrderedDict[str, Resident] = OrderedDict()
        self._running: set[str] = set()  # of the last batch, which may still run: never evicted
        self._prefetched: set[str] = set()  # and not yet used by a batch
        self._stream: torch.cuda.Stream | None = None
        # one load at a time, so there are never more adapters than slots
        self._loading = threading.Lock()
        self._choosing = threading.Lock()  # guards the sets above; never held during a load

    @property
    def apart(self) -> bool:
        """Whether the device has its own memory, and can copy while it computes."""
        return self._device.type != "cpu"

    def resident(self, digest: str) -> bool:
        return digest in self._residents

    def held(self) -> dict[Kind, list[int]]:
        """The bytes of each adapter on the device, by kind."""
        found: dict[Kind, list[int]] = {kind: [] for kind in KIND_KEYS}
        for resident in list(self._residents.values()):  # another thread may be loading
            found[resident.spec.kind].append(resident.bytes)
        return found

    def acquire(self, adapters: Iterable[Adapter]) -> dict[str, Resident]:
        """All of a batch's adapters, on the device; there must be no more of them than slots. None
        is evicted before the next call."""
        wanted = {adapter.digest: adapter for adapter in adapters}
        assert len(wanted) <= self._capacity, (
            "the batcher keeps a batch's adapters within the slots"
        )
        with self._choosing:
            self._running = set(wanted)
            self._prefetched -= self._running
            for digest in wanted.keys() & self._residents.keys():
                self._residents.move_to_end(digest)
        for digest in wanted.keys() - self._residents.keys():
            with self._loading:
                if digest in self._residents:  # prefetched while this thread waited
                    continue
                with self._choosing:
                    self._evict_for_one(self._running)
                self._residents[digest] = self._put(wanted[digest])
        return {digest: self._residents[digest] for digest in wanted}

    def prefetch(self, adapter: Adapter) -> None:
        """Load an adapter before its batch. If that is not possible, its batch loads it.

        Never evicts a running or prefetched adapter; otherwise a long queue would evict what it
        waits for.
        """
        digest = adapter.digest
        with self._loading:
            if digest in self._residents:
                return
            with self._choosing:
                if not self._evict_for_one(self._running | self._prefetched):
                    return
            try:
                resident = self._put(adapter)
            except Exception:
                # counted; its batch meets the same error, such as too little memory, and reports it
                return
            with self._choosing:
                self._residents[digest] = resident
                if digest not in self._running:
                    self._prefetched.add(digest)

    def _evict_for_one(self, kept: set[str]) -> bool:
        """Evict the least recently used adapter that is not in `kept`, if no slot is free. Whether
        one is free now."""
        while len(self._residents) >= self._capacity:
            oldest = next((digest for digest in self._residents if digest not in kept), None)
            if oldest is None:
                return False
            del self._residents[oldest]
            self._prefetched.discard(oldest)
            self._evicted()
        return True

    def _put(self, adapter: Adapter) -> Resident:
        started = time.monotonic()
        try:
            resident = self._load(adapter)
        except Exception as error:  # such as too little memory
            reason = shown(str(error))
        else:
            self._loaded(time.monotonic() - started)
            return resident
        # Not in the `except`, whose error keeps the tensors that were loaded alive.
        self._failed()
        raise AdapterNotLoaded(
            adapter.digest,
            f"version {adapter.version} of task {adapter.spec.task!r} could not be put on the"
            f" device: {reason}; expected memory for it, or fewer slots (ADAMIX_SLOTS)",
        )

    def _load(self, adapter: Adapter) -> Resident:
        if self._device.type == "cuda":
            # On a stream of its own, so as not to wait for the running batch. No batch uses the
            # memory that this takes: running adapters are not evicted, and every earlier batch has
            # given its answers.
            self._stream = self._stream or torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            with torch.cuda.stream(self._stream):
                tensors = self._on_device(adapter)
            self._stream.synchronize()
        else:
            tensors = self._on_device(adapter)

        return Resident(
            adapter.spec,
            registry.load(adapter.spec, tensors),
            _head(tensors),
            bytes=sum(tensor.nbytes for tensor in tensors.values()),
        )

    def _on_device(self, adapter: Adapter) -> dict[str, Tensor]:
        tensors = _moved(adapter.tensors, self._device, self._dtype)
        if self._dtype != torch.float32:
            head = {
                name: tensor for name, tensor in adapter.tensors.items() if name.startswith("head.")
            }
            tensors |= _moved(head, self._device, torch.float32)
        return tensors


def _head(tensors: Mapping[str, Tensor]) -> Head:
    def pair(name: str) -> Pair | None:
        weight, bias = (tensors.get(f"head.{name}.{kind}") for kind in ("weight", "bias"))
        return None if weight is None or bias is None else (weight, bias)

    out = pair("out")
    assert out is not None, "the file's header was checked"
    return Head(pair("dense"), pair("norm"), out)


def _moved(
    tensors: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """All of them on a device, in a dtype; in one copy if they lie in one piece of memory, as a
    file's do."""
    first, *others = tensors.values()
    if any(
        t.dtype != first.dtype or t.untyped_storage()._cdata != first.untyped_storage()._cdata
        for t in others
    ):
        return {name: tensor.to(device, dtype) for name, tensor in tensors.items()}
    start = min(tensor.storage_offset() for tensor in tensors.values())
    end = max(tensor.storage_offset() + tensor.numel() for tensor in tensors.values())
    moved = first.as_strided((end - start,), (1,), start).to(device, dtype)
    shift = moved.storage_offset() - start
    return {
        name: moved.as_strided(t.shape, t.stride(), t.storage_offset() + shift)
        for name, t in tensors.items()
    }

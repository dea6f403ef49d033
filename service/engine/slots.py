"""Adapters resident on the device: at most so many, the least recently used one makes room."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from adapters.file import Adapter
from adapters.spec import AdapterSpec, shown
from service.refusals import AdapterNotLoaded


@dataclass(frozen=True, eq=False)
class Resident:
    """One adapter's tensors on the device, in the backbone's dtype; the head's in float32.

    `down` and `up` are transposed for `x @ w`: `[L, d, r]` and `[L, r, d]`, of L layers from
    `first_layer` on.
    """

    spec: AdapterSpec
    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    dense: tuple[Tensor, Tensor] | None
    norm: tuple[Tensor, Tensor] | None
    out: tuple[Tensor, Tensor]

    @cached_property
    def layers(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Each adapted layer's down, its bias, up, its bias: views that all batches share."""
        return list(
            zip(
                *(x.unbind() for x in (self.down, self.down_bias, self.up, self.up_bias)),
                strict=True,
            )
        )


class Slots:
    """Which adapters are on the device, by their files' digests. One thread runs the batches and
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
        """`loaded` is told the seconds of each load, `evicted` of each adapter that made room,
        `failed` of each load that raised."""
        self._capacity, self._device, self._dtype = capacity, device, dtype
        self._loaded, self._evicted, self._failed = loaded, evicted, failed
        self._residents: OrderedDict[str, Resident] = OrderedDict()
        self._running: set[str] = set()  # pinned: the last batch's, which may still run
        self._ahead: set[str] = set()  # brought in before their batch, which has not come yet
        self._stream: torch.cuda.Stream | None = None
        # one comes in at a time, so there are never more than slots
        self._loading = threading.Lock()
        self._choosing = threading.Lock()  # held for no longer than it takes to look who is where

    @property
    def apart(self) -> bool:
        """Whether the device has a memory of its own, and takes copies while it works."""
        return self._device.type != "cpu"

    def resident(self, digest: str) -> bool:
        return digest in self._residents

    def acquire(self, adapters: Iterable[Adapter]) -> dict[str, Resident]:
        """All of a batch's adapters, on the device; there must be no more of them than slots. They
        stay until the next."""
        wanted = {adapter.digest: adapter for adapter in adapters}
        assert len(wanted) <= self._capacity, (
            "the batcher keeps a batch's adapters within the slots"
        )
        with self._choosing:
            self._running = set(wanted)
            self._ahead -= self._running
            for digest in wanted.keys() & self._residents.keys():
                self._residents.move_to_end(digest)
        for digest in wanted.keys() - self._residents.keys():
            with self._loading:
                if digest in self._residents:  # it came while this thread waited
                    continue
                with self._choosing:
                    self._make_room(self._running)
                self._residents[digest] = self._put(wanted[digest])
        return {digest: self._residents[digest] for digest in wanted}

    def prefetch(self, adapter: Adapter) -> None:
        """Bring one in before its batch, which brings in itself what it does not find. None makes
        room here that runs or was brought in so: a long queue would chase out what it waits for."""
        digest = adapter.digest
        with self._loading:
            if digest in self._residents:
                return
            with self._choosing:
                if not self._make_room(self._running | self._ahead):
                    return
            try:
                resident = self._put(adapter)
            except Exception:
                # counted; the device is out of memory, say: its batch meets that too, and answers
                return
            with self._choosing:
                self._residents[digest] = resident
                if digest not in self._running:
                    self._ahead.add(digest)

    def _make_room(self, kept: set[str]) -> bool:
        """Whether there is a slot, now that the least recently used one beside those `kept` has
        made room."""
        while len(self._residents) >= self._capacity:
            oldest = next((digest for digest in self._residents if digest not in kept), None)
            if oldest is None:
                return False
            del self._residents[oldest]
            self._ahead.discard(oldest)
            self._evicted()
        return True

    def _put(self, adapter: Adapter) -> Resident:
        started = time.monotonic()
        try:
            resident = self._load(adapter)
        except Exception as error:  # the device is out of memory, say
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
            # Beside the batch that runs, not behind it. No batch uses the memory that this takes:
            # what makes room was not pinned, and every earlier batch has given its answers.
            self._stream = self._stream or torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            with torch.cuda.stream(self._stream):
                tensors = self._on_device(adapter)
            self._stream.synchronize()
        else:
            tensors = self._on_device(adapter)

        def pair(name: str) -> tuple[Tensor, Tensor] | None:
            return (
                (tensors[f"{name}.weight"], tensors[f"{name}.bias"])
                if f"{name}.weight" in tensors
                else None
            )

        out = pair("head.out")
        assert out is not None, "the file's header was checked"
        return Resident(
            spec=adapter.spec,
            down=tensors["down.weight"].transpose(1, 2),
            down_bias=tensors["down.bias"],
            up=tensors["up.weight"].transpose(1, 2),
            up_bias=tensors["up.bias"],
            dense=pair("head.dense"),
            norm=pair("head.norm"),
            out=out,
        )

    def _on_device(self, adapter: Adapter) -> dict[str, Tensor]:
        tensors = _moved(adapter.tensors, self._device, self._dtype)
        if self._dtype != torch.float32:
            head = {
                name: tensor for name, tensor in adapter.tensors.items() if name.startswith("head.")
            }
            tensors |= _moved(head, self._device, torch.float32)
        return tensors


def _moved(
    tensors: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """All of them on a device, in a dtype: those that lie in one piece of memory, as a file's do,
    in one copy."""
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

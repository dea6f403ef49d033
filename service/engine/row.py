"""What the engine is given to predict."""

from __future__ import annotations

from dataclasses import dataclass

from adapters.file import Adapter


@dataclass(frozen=True, slots=True)
class Row:
    """One text of one task: the adapter it was admitted with, its token and type ids, and where its
    prompt's mask is."""

    adapter: Adapter
    ids: list[int]
    types: list[int]
    mask: int | None = None

    @property
    def task(self) -> str:
        return self.adapter.spec.task

    @property
    def adapter_key(self) -> str:
        return self.adapter.digest

    @property
    def tokens(self) -> int:
        return len(self.ids)

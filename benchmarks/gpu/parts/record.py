"""The figures of a run, written down part by part; a run that is repeated goes on where the last
one stopped."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[3]
SOURCES = (
    "service/engine/**/*.py",
    "adapters/*.py",
    "benchmarks/gpu/__main__.py",
    "benchmarks/gpu/parts/*.py",
    "benchmarks/contest.py",
)
LIBRARIES = ("torch", "transformers", "triton", "tokenizers", "numpy")
PASSED, FAILED, UNCHECKED = "passed", "FAILED", "not checked"


class Record:
    """The JSON file. Parts of an earlier run stay, if that had the same device, versions, settings
    and sources."""

    def __init__(
        self, file: Path, command: str, device: torch.device, settings: Mapping[str, Any]
    ) -> None:
        self.file = file
        self.found = {
            **_head(device, settings),
            "command": command,
            "parity": UNCHECKED,
            "parts": {},
        }
        self._resume()

    @property
    def parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = self.found["parts"]
        return parts

    def done(self, part: str) -> bool:
        """Whether a part is there and whole: what the budget cut short is measured again."""
        entry = self.parts.get(part, {})
        return "result" in entry and not entry.get("cut_short")

    def put(self, part: str, entry: Mapping[str, Any]) -> None:
        """`entry` has a `result`, or an `error`, or says why it was `skipped`."""
        self.parts[part] = dict(entry)
        if part == "parity":
            result = entry.get("result")
            self.found["parity"] = (
                UNCHECKED if result is None else PASSED if result["passed"] else FAILED
            )
        else:
            self.parts[part]["parity"] = self.found["parity"]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        whole = self.file.with_name(self.file.name + ".part")
        whole.write_text(json.dumps(self.found, indent=2) + "\n")
        whole.replace(self.file)

    def _resume(self) -> None:
        if not self.file.exists():
            return
        before = json.loads(self.file.read_text())
        if all(
            before.get(key) == self.found[key]
            for key in ("device", "versions", "settings", "sources")
        ):
            self.found.update(parity=before["parity"], parts=before["parts"])


def device_name(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {platform.machine()}"
    )


def _head(device: torch.device, settings: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": device_name(device)}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= {"memory_bytes": card.total_memory, "multiprocessors": card.multi_processor_count}
        found["capability"] = f"{card.major}.{card.minor}"
    versions = {"python": platform.python_version(), "cuda": torch.version.cuda}
    versions |= {name: _version(name) for name in LIBRARIES}
    return {
        "device": found,
        "versions": versions,
        "settings": json.loads(json.dumps(settings)),
        "sources": _sources(),
    }


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _sources() -> str:
    """What the figures are of: a digest of the engine's files and of these."""
    digest = hashlib.sha256()
    for file in sorted(file for pattern in SOURCES for file in ROOT.glob(pattern)):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]

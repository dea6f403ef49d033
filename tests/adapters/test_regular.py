"""What is no regular file, in place of one that is read: it holds up nobody."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters import backbone
from adapters.bucket.kept_state import KeptState
from adapters.convert.objects import read_object
from adapters.convert.probe import read_probe
from adapters.convert.weights import read_safetensors, read_weights
from adapters.errors import AdaMixError, BackboneError
from adapters.file import load, read_summary
from adapters.pieces import read_file
from adapters.regular import read_bytes
from adapters.rows import read_rows
from service.audit import AuditLog, Write
from service.http.auth import kept_admin_key
from service.keys.file import InvalidKeys, read
from service.offline.errors import CannotScore
from service.offline.journal import Journal
from training.comparison import found_runs
from training.errors import TrainingError
from training.jsonl import recorded

pytestmark = pytest.mark.timeout(60)

READERS: dict[str, Callable[[Path], object]] = {
    "t.safetensors": load,
    "s.safetensors": read_summary,
    "stored.safetensors": lambda path: read_file(path, 100),
    "rows.jsonl": lambda path: list(read_rows(path, ("text",))),
    "rows.csv": lambda path: list(read_rows(path, ("text",))),
    "rows.parquet": lambda path: list(read_rows(path, ("text",))),
    "probe.jsonl": lambda path: read_probe(path, text_pair=False),
    "weights.bin": read_weights,
    "weights.safetensors": read_safetensors,
    "config.json": lambda path: read_object(path, "PEFT"),
    "state.json": lambda path: KeptState(path).read(),
    "scores.jsonl": lambda path: found_runs([path, path]),
    "keys.toml": read,
    "store.admin-key": lambda path: kept_admin_key(path.with_name("store")),
}


@pytest.mark.parametrize("kind", ["a pipe", "a device"])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_refused_at_once(name: str, kind: str, tmp_path: Path) -> None:
    """A pipe without a writer, or a device without an end, in place of any file that is read, is
    refused in a sentence."""
    path = tmp_path / name
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises((AdaMixError, TrainingError, OSError)) as caught:
        READERS[name](path)
    assert "\n" not in str(caught.value)


def test_a_pipe_with_a_writer_is_read_to_its_end(tmp_path: Path) -> None:
    """The probe of a shell's `<(…)` is a pipe whose writer is there."""
    pipe = tmp_path / "probe"
    os.mkfifo(pipe)
    with pipe.open("r+b", buffering=0) as writer:
        writer.write(b'{"text": "good"}\n' * 8)
        assert read_probe(pipe, text_pair=False) == (("good",),) * 8


def test_pipes_in_folders_that_libraries_read(tmp_path: Path) -> None:
    """A pipe in a backbone's folder, for the answers of `predict` or for a file of scores is
    refused, or passed over, before a library opens it."""
    for name in ("config.json", "rows.part", "scores.jsonl"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(BackboneError, match=r"config\.json that is no regular file"):
        backbone.load(str(tmp_path))
    with pytest.raises(CannotScore, match="is no regular file"):
        Journal.of(tmp_path / "rows.part", {})
    assert not recorded(tmp_path / "scores.jsonl", {"a": 1})


def admin_key(path: Path) -> None:
    key = path.read_text()
    path.chmod(0o600)
    assert kept_admin_key(path.with_name("store")) == (key, path, False)


def keys(path: Path) -> None:
    path.chmod(0o600)
    with pytest.raises(InvalidKeys, match="it is not TOML"):
        read(path)


def audit(path: Path) -> None:
    AuditLog(str(path), failed=lambda: pytest.fail("it can be written")).add(Write("upload", "t"))


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("file", lambda path: read_bytes(path)),
        ("keys.toml", keys),
        ("store.admin-key", admin_key),
        ("audit.jsonl", audit),
    ],
)
def test_a_leased_file_is_used(name: str, use: Callable[[Path], object], tmp_path: Path) -> None:
    """A file of which another program holds a lease is read or written once that lets go of it."""
    path = tmp_path / name
    path.write_bytes(b"content")
    descriptor = os.open(path, os.O_RDWR)
    left = []

    def leave(*_: object) -> None:
        left.append(True)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    before = signal.signal(signal.SIGIO, leave)
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    try:
        use(path)
    finally:
        os.close(descriptor)
        signal.signal(signal.SIGIO, before)
    assert left

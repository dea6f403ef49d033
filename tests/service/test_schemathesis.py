"""The service as a stranger's tool sees it: schemathesis reads /openapi.json and attacks every
operation with it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from adapters.file import parse
from adapters.store import Store
from tests.service.conftest import ADMIN_KEY, TASKS, running

CONFIG = Path(__file__).with_suffix(".toml").with_name("schemathesis.toml")


def test_schemathesis_finds_nothing(tmp_path: Path, adapter_bytes: Callable[..., bytes]) -> None:
    """Examples, edge cases, random and chained requests, uploads and deletions among them, get what
    the document promises: never a 5xx, no undocumented status, header or body, wrong data refused,
    right data taken, keys asked for."""
    files = tmp_path / "files"
    files.mkdir()
    store = Store(tmp_path / "store")
    for task in TASKS:
        data = adapter_bytes(task)
        store.put(parse(data))
        (files / task).write_bytes(data)
    store.close()
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "--config-file",
        str(CONFIG),
        "run",
        "--no-color",
        "--warnings=off",
    ]
    with running(store.folder, admin_key=ADMIN_KEY, api_key=ADMIN_KEY) as server:
        environment = {**os.environ, "KEY": ADMIN_KEY, "ADAPTER_FILES": str(files)}
        done = subprocess.run(
            [*command, f"{server.url}/openapi.json"],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=160,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert not [line for line in server.lines if line.get("level") == "error"]

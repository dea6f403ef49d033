"""A real Chromium before a real server; every tab tells what it asked for and what went wrong in
it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from adapters.backbone import Backbone
from adapters.file import load
from adapters.store import Store
from tests.service.conftest import ADMIN_KEY, TASKS, Server, running
from tests.tiny import random_adapter

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
# The browser itself is to ask for nothing: what the tests see on the network is the page's.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 10_000  # of every waiting expectation, on a busy machine


@dataclass
class Tab:
    """One page in a context of its own; `refusals` says that the test makes the server refuse or
    leave on purpose."""

    page: Page
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    refusals: bool = False

    def faults(self) -> list[str]:
        """What the browser complained of, but for the failed requests that the test wanted."""
        wanted = "Failed to load resource" if self.refusals else "\0"
        return [error for error in self.errors if wanted not in error]


@contextmanager
def browser() -> Iterator[Browser]:
    """Debian's Chromium, headless."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_MS)
    with browser() as chromium:
        yield chromium


@pytest.fixture(scope="session")
def adapter_file(
    embedded: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Write one more adapter file: `adapter_file(task, seed=…)`, options as in TASKS."""

    def make(task: str, seed: int = 0, **options: Any) -> Path:
        chosen = TASKS.get(task, {"labels": ["no", "yes"]}) | options
        path = tmp_path_factory.mktemp("files") / f"{task}.safetensors"
        path.write_bytes(random_adapter(embedded, task, seed=seed, **chosen)[2])
        return path

    return make


@pytest.fixture(scope="session")
def server(
    tmp_path_factory: pytest.TempPathFactory, adapter_file: Callable[..., Path]
) -> Iterator[Server]:
    """A server that asks for an admin key, with tasks of every kind; `sst2` has two versions."""
    store = Store(tmp_path_factory.mktemp("browser") / "store")
    for task in TASKS:
        store.put(load(adapter_file(task)))
    store.put(load(adapter_file("sst2", seed=1)))
    store.close()
    with running(store.folder, admin_key=ADMIN_KEY) as server:
        yield server


@pytest.fixture
def open_tab(chromium: Browser, server: Server) -> Iterator[Callable[..., Tab]]:
    """Open the page: `open_tab(width=…)`, more options as Playwright's new_context has them. After
    the test: no tab asked anybody but its server for anything, and none has an error in its
    console."""
    opened: list[tuple[Tab, str]] = []

    def open_one(
        url: str | None = None,
        width: int = 1280,
        prepare: Callable[[Page], object] | None = None,
        **options: Any,
    ) -> Tab:
        context = chromium.new_context(viewport={"width": width, "height": 900}, **options)
        context.set_default_timeout(PATIENCE_MS)
        tab = Tab(context.new_page())
        context.on("request", lambda request: tab.requests.append(request.url))
        tab.page.on(
            "console", lambda message: message.type == "error" and tab.errors.append(message.text)
        )
        tab.page.on("pageerror", lambda error: tab.errors.append(str(error)))
        if prepare is not None:
            prepare(tab.page)
        tab.page.goto(url or server.url)
        opened.append((tab, url or server.url))
        return tab

    yield open_one
    for tab, url in opened:
        tab.page.context.close()
        assert tab.requests
        assert not [request for request in tab.requests if not request.startswith(f"{url}/")]
        assert tab.faults() == []

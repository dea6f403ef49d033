"""`make screenshots`: the pictures of docs/images/, of a real server with the shipped adapters."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page

from adapters.backbone import load
from adapters.file import parse
from adapters.store import Store
from tests.browser.conftest import browser
from tests.browser.many import answer_as_if
from tests.browser.png import with_palette
from tests.service.conftest import TASKS, running
from tests.tiny import random_adapter

SHIPPED = Path(__file__).parents[2] / "store"
WIDTHS = (1280, 390)
MAX_BYTES = 200_000
TRIES = 8


def main(folder: Path) -> None:
    """Write page-1280.png and page-390.png (light), page-dark.png, and page-10000.png with ten
    thousand invented tasks, some of them searched."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(scratch) / "store")
        _fill(store)
        store.close()
        with running(store.folder) as server, browser() as chromium:
            for width in WIDTHS:
                _take(chromium, server.url, folder / f"page-{width}.png", width, "light")
            _take(chromium, server.url, folder / "page-dark.png", WIDTHS[0], "dark")
            _take(chromium, server.url, folder / "page-10000.png", WIDTHS[0], "light", tasks=10_000)


def _fill(store: Store) -> None:
    """The shipped adapters; where there are none, random ones."""
    files = [path.read_bytes() for path in sorted(SHIPPED.glob("*.safetensors"))]
    backbone = None if files else load()
    for data in files or (
        random_adapter(backbone, task, **options)[2] for task, options in TASKS.items() if backbone
    ):
        store.put(parse(data))


def _take(
    chromium: Browser, url: str, path: Path, width: int, scheme: str, tasks: int | None = None
) -> None:
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    if tasks is not None:
        answer_as_if(page, tasks)
    page.goto(url)
    page.locator("#rows tr").first.wait_for()
    if tasks is None:
        _use(page)
    else:
        _search(page)
    path.write_bytes(with_palette(page.screenshot(full_page=True)))
    page.close()
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise SystemExit(f"{path} has {size} bytes; expected at most {MAX_BYTES}")
    sys.stdout.write(f"{path}  {size} bytes\n")


def _use(page: Page) -> None:
    """Try the text that stands there a few times, for the latencies; open a task, and wait until
    the chart shows it."""
    for _ in range(TRIES):
        page.get_by_role("button", name="Predict").click()
        page.locator("#answers:not([aria-busy]) .answer").first.wait_for()
    page.locator("button.task").first.click()
    page.locator(".versions li").first.wait_for()
    page.locator("#chart", has_text="highest").wait_for()


def _search(page: Page) -> None:
    """More tasks than the list has rows, so that it is paged."""
    page.get_by_role("searchbox").fill("042")
    page.locator("#range", has_text="of 120").wait_for()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

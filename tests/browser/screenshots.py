"""`make screenshots`: the pictures of docs/images/, of a real server with the shipped adapters."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import httpx2
import torch
from playwright.sync_api import Browser, Page

from adapters.backbone import load
from adapters.file import parse, serialize
from adapters.store import Store
from tests.browser.conftest import browser
from tests.browser.many import answer_as_if
from tests.browser.png import with_palette
from tests.service.conftest import TASKS, running, until
from tests.tiny import random_adapter, reference_logits

SHIPPED = Path(__file__).parents[2] / "store"
WIDTHS = (1280, 390)
MAX_BYTES = 200_000
TRIES = 8
DIVIDED = "sst2"
# Of texts that are sent to it.
OPENINGS = ("a charming film with", "the director brings", "nobody asked for", "two hours of")
MIDDLES = (
    *("a wonderful cast", "wooden acting", "an affecting story", "a plot without a point"),
    *("quiet humour", "the same tired jokes", "real warmth", "endless noise"),
)
ENDS = ("", "and a fine end", "and no end", "that I would see again", "that bored me", "at last")


def main(folder: Path) -> None:
    """Write page-1280.png and page-390.png (light), page-dark.png, page-10000.png with ten thousand
    invented tasks, some of them searched, and page-canary.png with a canary and a shadow."""
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
            with server.client() as client:
                _divide(client)
            _take(chromium, server.url, folder / "page-canary.png", WIDTHS[0], "light", of=DIVIDED)


def _fill(store: Store) -> None:
    """The shipped adapters; where there are none, random ones."""
    files = [path.read_bytes() for path in sorted(SHIPPED.glob("*.safetensors"))]
    backbone = None if files else load()
    for data in files or (
        random_adapter(backbone, task, **options)[2] for task, options in TASKS.items() if backbone
    ):
        store.put(parse(data))


def _divide(client: httpx2.Client) -> None:
    """Two further versions of a task, as if trained again: its weights, disturbed a little or much.
    Some hundred requests, and the time to compare them."""
    active = client.get(f"/adapters/{DIVIDED}").json()["version"]
    file = client.get(f"/adapters/{DIVIDED}/versions/{active}/file").content
    names = []
    for noise in (1.0, 2.5):
        uploaded = client.post(
            "/adapters", files={"file": _disturbed(file, noise)}, data={"activate": "false"}
        )
        assert uploaded.status_code == 201, uploaded.text
        names.append(uploaded.json()["versions"][-1]["version"])
    split = {
        "active": active,
        "canary": {"version": names[0], "percent": 25},
        "shadow": {"version": names[1], "percent": 100},
        "rollback": {"disagreement": 0.2, "errors": 0.01, "after": 200},
    }
    path = f"/adapters/{DIVIDED}/traffic"
    assert client.put(path, json=split).status_code == 200
    for text in (f"{a} {b} {c}" for a in OPENINGS for b in MIDDLES for c in ENDS):
        assert client.post(f"/predict?task={DIVIDED}", json={"inputs": text}).status_code == 200

    def compared() -> bool:
        seen = client.get(path).json()["seen"]
        done = seen["shadow"]["compared"] + seen["shadow"]["dropped"]
        return bool(done == seen["active"]["rows"])

    until(compared)


def _disturbed(file: bytes, noise: float) -> bytes:
    """Another version of an adapter: noise of so many standard deviations in what it projects up.
    Its probe's logits are its own."""
    adapter, backbone = parse(file), load()
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: tensor + (noise * tensor.std() * torch.randn(tensor.shape, generator=generator))
        if name == "up.weight"
        else tensor
        for name, tensor in adapter.tensors.items()
    }
    probe = adapter.spec.probe
    logits = reference_logits(backbone, adapter.spec, tensors, probe.inputs).double().tolist()
    return serialize(
        adapter.spec.model_copy(
            update={"probe": probe.model_copy(update={"logits": tuple(map(tuple, logits))})}
        ),
        {
            name: tensor.to(adapter.tensors[name].dtype).contiguous()
            for name, tensor in tensors.items()
        },
    )


def _take(
    chromium: Browser,
    url: str,
    path: Path,
    width: int,
    scheme: str,
    tasks: int | None = None,
    of: str | None = None,
) -> None:
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    if tasks is not None:
        answer_as_if(page, tasks)
    page.goto(url)
    page.locator("#rows tr").first.wait_for()
    if tasks is None:
        _use(page, of)
    else:
        _search(page)
    path.write_bytes(with_palette(page.screenshot(full_page=True)))
    page.close()
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise SystemExit(f"{path} has {size} bytes; expected at most {MAX_BYTES}")
    sys.stdout.write(f"{path}  {size} bytes\n")


def _use(page: Page, task: str | None) -> None:
    """Try the text that stands there a few times, for the latencies; open a task (by default the
    first), and wait until the chart shows it."""
    for _ in range(TRIES):
        page.get_by_role("button", name="Predict").click()
        page.locator("#answers:not([aria-busy]) .answer").first.wait_for()
    page.locator("button.task", has_text=task).first.click()
    page.locator(".versions li").first.wait_for()
    page.locator("#chart", has_text="highest").wait_for()


def _search(page: Page) -> None:
    """More tasks than the list has rows, so that it is paged."""
    page.get_by_role("searchbox").fill("042")
    page.locator("#range", has_text="of 120").wait_for()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

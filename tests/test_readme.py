"""The README and the pages of docs/ are true: their commands run, their answers are what the
service answers, their lists are whole, their links lead somewhere, and the site builds of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from adapters.file import load
from docs import settings_table
from tests import forks
from tests.service.conftest import Server, running
from training.tasks import TASKS

ROOT = Path(__file__).parent.parent
TEXTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))
}
END_OF_BLOCK = "--- end of block ---"
# A page's blocks share a shell: an answer of 4xx or 5xx is a failure there, as any other command's.
SHELL = 'set -euo pipefail; curl() { command curl --silent --show-error --fail-with-body "$@"; }\n'

# Lines of `text` blocks by how they begin, and why they do not run here.
NOT_RUN = {
    "make serve": "installs; CI's own targets do the same",
    "make test": "it is what runs here",
    ". .venv/bin/activate": "the tests have an environment already",
    "pip install": "installs; CI's own targets do the same",
    "docker compose up": "containers: deploy/check.sh looks at what it starts",
    "echo ADAMIX_ADMIN_KEY=": "for the line that follows it",
    "docker compose --profile scale up": "containers: the next line but one checks them",
    "bash deploy/check-scale.sh": "containers",
    "docker compose exec": "containers",
    "curl 'localhost:8080/": "Envoy: tests/service/test_balancer.py has one",
    "kubectl ": "a cluster: tests/test_kubernetes.py builds the manifests",
    "python -m benchmarks.gpu": (
        "a GPU; tests/benchmarks/test_gpu_benchmark.py runs it on a CPU at sizes that measure"
        " nothing"
    ),
    "python -m benchmarks.gpu.half": "tests/benchmarks/test_gpu_benchmark.py makes that folder",
    "python -m benchmarks.": "hours, with data sets that are not in the repository",
    "taskset -c 0 python -m benchmarks.": "data sets that are not in the repository",
    "adamix-train --install-completion": (
        "writes into a user's shell; tests/test_doors.py asks for the completion itself"
    ),
    "python -m adapters convert pytorch_model_": (
        "gigabytes; tests/adapters/test_convert_adamix.py makes small checkpoints"
    ),
    "BnConfig(": "AdapterHub's library: benchmarks/engine/adapterhub_parity.py uses it",
    "python -m training --task sst2": (
        "data from the hub; tests/training/test_tasks.py has repositories on disk"
    ),
    "accelerate launch --multi_gpu": (
        "several GPUs; tests/training/test_processes.py has several processes"
    ),
    "python -m training calibrate": (
        "100 labelled rows or more; tests/training/test_calibration.py has them"
    ),
    "python -m training … --": (
        "a backbone with a masked-language-model head; tests/adapters/test_prompt.py makes small"
        " ones"
    ),
    "python -m adapters copy": "a bucket; tests/adapters/test_store_contract.py has one",
    "python -m adapters gc": "a bucket; tests/adapters/test_store_contract.py has one",
    "ADAMIX_KEYS_FILE=": "it serves; tests/service/test_http_keys.py has such servers",
    "ADAMIX_STORE=s3:": "a bucket; tests/service/test_replicas.py has three replicas on one",
    "python -m training --train DATA/": "hours, with data sets that are not in the repository",
}


@dataclass(frozen=True)
class Block:
    """A fenced block, with the answer that stands below it."""

    language: str
    code: str
    answer: str

    @property
    def runs(self) -> bool:
        """`text` is for what cannot run here, `promql` for Prometheus."""
        return self.language in ("bash", "python")

    @property
    def lines(self) -> list[str]:
        """The commands, each on one line."""
        return self.code.replace("\\\n", " ").splitlines()

    @property
    def script(self) -> str:
        code = f"python <<'PYTHON'\n{self.code}PYTHON\n" if self.language == "python" else self.code
        return f"{code}echo; echo '{END_OF_BLOCK}'\n"


def blocks(page: str) -> list[Block]:
    fences = re.findall(
        r"^```(\w*)\n(.*?)^```$(?:\n\n```json\n(.*?)^```$)?", TEXTS[page], re.MULTILINE | re.DOTALL
    )
    return [Block(*fence) for fence in fences]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """What `make serve` starts: the embedded backbone and the shipped adapters."""
    store = tmp_path_factory.mktemp("shipped") / "store"
    with running(store, forked=False, seed=ROOT / "store") as server:
        yield server


def labels(answer: Any) -> Any:
    """The answer without its numbers."""
    if isinstance(answer, dict):
        return {key: labels(value) for key, value in answer.items()}
    if isinstance(answer, list):
        return [labels(value) for value in answer]
    return None if isinstance(answer, float) else answer


def numbers(answer: Any) -> list[float]:
    """The answer's numbers, in order."""
    if isinstance(answer, dict):
        return [score for key in sorted(answer) for score in numbers(answer[key])]
    if isinstance(answer, list):
        return [score for value in answer for score in numbers(value)]
    return [answer] if isinstance(answer, float) else []


@pytest.mark.timeout(900)  # a page may train several times, on a busy machine too
@pytest.mark.parametrize(
    "page", [page for page in TEXTS if any(block.runs for block in blocks(page))]
)
def test_commands_answer_what_the_page_prints(page: str, shipped: Server, tmp_path: Path) -> None:
    """A page's blocks run as they stand, one after the other in one shell, and answer what is
    printed below them."""
    ran = [block for block in blocks(page) if block.runs]
    script = SHELL + "".join(block.script for block in ran).replace(
        "localhost:8000", shipped.url.removeprefix("http://")
    )
    for folder in ("docs", "store"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    folders = [str(Path(sys.executable).parent), os.environ["PATH"]]
    if page != "README.md":  # of the front door, each start is that of an interpreter
        (tmp_path / "bin").mkdir()
        folders.insert(0, str(forks.interpreter(tmp_path / "bin").parent))
    # else its client asks nobody, our service included
    environment = {**os.environ, "PATH": os.pathsep.join(folders), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        pass_fds=[forks.origin().fileno()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    trained = False
    for block, output in zip(ran, done.stdout.split(END_OF_BLOCK), strict=False):
        trained |= "python -m training" in block.code
        if block.answer:
            answer, printed = json.loads(output.strip().splitlines()[-1]), json.loads(block.answer)
            assert labels(answer) == labels(printed)
            if not trained:  # training gives other digits on another processor
                assert numbers(answer) == pytest.approx(numbers(printed), abs=2e-3)


def test_what_does_not_run_has_a_reason() -> None:
    """Every line that does not run here is listed with its reason, and what is listed is there."""
    unrun = [
        line
        for page in TEXTS
        for block in blocks(page)
        if block.language == "text"
        for line in block.lines
    ]
    assert [line for line in unrun if not line.startswith(tuple(NOT_RUN))] == []
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in unrun)] == []


def test_there_are_commands_to_run() -> None:
    """The front door and the pages that teach have commands, and every block says what it is."""
    run = {page: [block for block in blocks(page) if block.runs] for page in TEXTS}
    assert {page for page, found in run.items() if found} >= {
        "README.md",
        "docs/index.md",
        "docs/ten-minutes.md",
        "docs/api.md",
    }
    for page in TEXTS:
        assert {block.language for block in blocks(page)} <= {
            "bash",
            "python",
            "text",
            "promql",
        }, page


def test_the_table_of_settings_is_today_s() -> None:
    """docs/settings.md holds the table that `python -m docs.settings_table` writes."""
    page = TEXTS["docs/settings.md"]
    assert settings_table.with_table(page) == page


def test_local_links_lead_somewhere() -> None:
    """Every link of the README and the documents to a file of this repository has that file, and
    that heading in it."""
    documents = [*map(ROOT.joinpath, TEXTS), *ROOT.glob("docs/decisions/*.md")]
    for document in [*documents, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks/JOURNAL.md"]:
        for target, anchor in re.findall(
            r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", document.read_text()
        ):
            file = document.parent / target if target else document
            assert file.exists(), f"{document.name} links to {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
                slugs = [
                    re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
                    for heading in headings
                ]
                assert anchor in slugs, f"{document.name} links to {target}#{anchor}"


def test_the_site(tmp_path: Path) -> None:
    """The site builds without a warning, so its links and anchors lead somewhere, and loads nothing
    from elsewhere."""
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path),
    ]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    pages = {page.parent.name: page.read_text() for page in tmp_path.glob("**/index.html")}
    assert {Path(page).stem for page in TEXTS} - {"README", "index"} <= set(pages)
    for name, page in pages.items():
        loaded = re.findall(
            r'<(?:script|img|iframe)[^>]* src="?([^" >]+)|<link[^>]* href="?([^" >]+)', page
        )
        assert loaded
        assert not [url for urls in loaded for url in urls if "//" in url], name


def test_the_shipped_adapters_are_whole(shipped: Server) -> None:
    """Every file in store/ is served after a fresh start, is at most 500 KB and 0.35 % of the
    backbone's parameters without its head, and has the bytes, the rows and the score that the
    documents say."""
    files = {path.stem: path for path in (ROOT / "store").glob("*.safetensors")}
    assert len(files) == 10
    with shipped.client() as client:
        served = {entry["task"]: entry for entry in client.get("/adapters").json()}
        for task, path in files.items():
            assert path.stat().st_size <= 500_000
            assert served[task]["bytes"] == path.stat().st_size
            training = client.get(f"/adapters/{task}").json()["spec"]["training"]
            (row,) = re.findall(rf"^\| `{task}` \|.*$", TEXTS["docs/training.md"], re.MULTILINE)
            assert f"| {training['train_rows']:,} / {training['dev_rows']:,} |" in row
            assert f"| {path.stat().st_size:,} |" in row
            assert f"{training['dev_scores'][TASKS[task].metric]:.3f}" in row
            sites = [
                tensor
                for name, tensor in load(path).tensors.items()
                if not name.startswith("head.")
            ]
            assert sum(tensor.numel() for tensor in sites) <= 0.0035 * 22_713_216

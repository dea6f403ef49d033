"""The house rules that a machine can hold: who imports whom, and that nothing happens on import."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("adapters", "training", "service")
FILES = [
    path.relative_to(ROOT)
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
]
WEB = {"fastapi", "starlette"}

NO_NOUNS = {"utils", "common", "helpers", "base"}

# Which rooms of `service` (a folder, or a file beside the folders) may import what. Everybody else
# may not.
SERVICE_MAY = {
    "FastAPI and Starlette": (WEB, {"app", "http", "ray", "workers"}),
    "HTTP": ({"service.http"}, {"__main__", "app", "http", "ray", "workers"}),
    "torch": ({"torch"}, {"app", "engine"}),
    "Triton": ({"triton"}, {"engine"}),
    "transformers": ({"transformers"}, {"engine"}),
    "Ray": ({"ray"}, {"ray"}),
    "OpenTelemetry": ({"opentelemetry"}, {"http", "telemetry"}),
    "the settings": ({"service.settings"}, {"__main__", "app", "ray"}),
    "the metrics": ({"service.telemetry.metrics"}, {"app", "http", "service"}),
    "the application": ({"service.app"}, {"__main__", "ray"}),
    "the engine": ({"service.engine"}, {"app", "engine", "loader", "service"}),
    "the worker processes": ({"service.workers"}, {"__main__", "workers"}),
}


def imported(file: Path) -> set[str]:
    """Every module that a file imports anywhere in it, with the packages it lies in: `a.b` is also
    `a`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{file}:{node.lineno} imports relatively; expected an absolute import"
            )
            assert node.module is not None
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {
        ".".join(parts[:n])
        for name in names
        for parts in [name.split(".")]
        for n in range(1, len(parts) + 1)
    }


def of(package: str) -> list[Path]:
    return [file for file in FILES if file.parts[0] == package]


def run(
    script: str, *, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that writes no bytecode."""
    surroundings = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=surroundings,
        check=False,
        timeout=120,
    )


def test_the_files_are_found() -> None:
    """Each of the three packages has files, whose imports are seen with the packages they lie
    in."""
    assert all(len(of(package)) > 5 for package in PACKAGES)
    assert {"service", "service.batcher", "adapters.file", "typing"} <= imported(
        Path("service/service.py")
    )


def test_packages() -> None:
    """`adapters` imports neither of the others, and `training` and `service` do not import each
    other."""
    foreign = {
        "adapters": {"training", "service"},
        "training": {"service"},
        "service": {"training"},
    }
    for package, others in foreign.items():
        for file in of(package):
            assert not imported(file) & others, f"{file} imports {imported(file) & others}"


def test_the_product_does_without_its_surroundings() -> None:
    """No package imports the tests or the benchmarks."""
    for file in FILES:
        assert not imported(file) & {"tests", "benchmarks", "pytest", "hypothesis"}, file


@pytest.mark.parametrize("package", ["adapters", "training"])
def test_http_is_the_service_s(package: str) -> None:
    """Only `service` knows of a web framework, a server or metrics."""
    for file in of(package):
        assert not imported(file) & {*WEB, "uvicorn", "prometheus_client"}, file


def test_the_batcher_knows_the_standard_library_alone() -> None:
    """Importing the batcher loads no module outside the standard library but the refusals, the
    adapters' errors, the spare rows and itself."""
    before = "import sys, service, adapters; known = set(sys.modules); "
    done = run(f"{before}import service.batcher; print(*sorted(set(sys.modules) - known))")
    assert (done.returncode, done.stderr) == (0, "")
    loaded = done.stdout.split()
    ours = {"service.batcher", "service.refusals", "service.spare_rows", "adapters.errors"}
    assert ours <= set(loaded)
    others = {name.split(".")[0] for name in loaded if name not in ours}
    assert others <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("what", SERVICE_MAY)
def test_rooms_of_the_service(what: str) -> None:
    """In `service` the web framework, torch, the settings and the metrics are each seen in their
    rooms only."""
    modules, rooms = SERVICE_MAY[what]
    users = {
        file.parts[1].removesuffix(".py") for file in of("service") if imported(file) & modules
    }
    assert users <= rooms, f"{users - rooms} import {what}; expected only {rooms}"
    assert users, f"nobody imports {what}: this rule holds nothing"


def test_only_routes_import_routes() -> None:
    """The routes are wired by the app and by a front end, and used by nobody else."""
    for file in of("service"):
        if "service.http.routes" in imported(file):
            assert file.parts[1] in ("http", "app.py", "workers"), file


def test_the_environment_is_read_at_the_door() -> None:
    """In `service` only `settings` reads the environment, but for what `__main__` sets for
    libraries."""
    for file in of("service"):
        text = (ROOT / file).read_text()
        assert file.name in ("__main__.py", "settings.py") or not (
            "os.environ" in text or "getenv" in text
        ), file


def test_files_are_named_for_nouns() -> None:
    """No module is named utils, common, helpers or base."""
    assert not [
        file for file in FILES if {part.removesuffix(".py") for part in file.parts} & NO_NOUNS
    ]


def test_nothing_is_printed_by_the_packages() -> None:
    """No package calls `print`: the doors write through typer and rich, the service logs."""
    for file in FILES:
        calls = [
            node
            for node in ast.walk(ast.parse((ROOT / file).read_text()))
            if isinstance(node, ast.Call)
        ]
        assert not [
            call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"
        ], file


IMPORT_ALL = """
import importlib, logging, os, signal, threading
asked = (signal.SIGTERM, signal.SIGINT)
before, handlers = dict(os.environ), [signal.getsignal(number) for number in asked]
for name in {names!r}:
    importlib.import_module(name)
assert threading.enumerate() == [threading.main_thread()], threading.enumerate()
assert not logging.getLogger().handlers, logging.getLogger().handlers
assert handlers == [signal.getsignal(number) for number in asked]
changed = set(before) ^ set(os.environ)
ours = {{name for name in changed if name.startswith(("ADAMIX", "TOKENIZERS"))}}
assert not ours, ours
"""


def test_nothing_happens_on_import(tmp_path: Path) -> None:
    """Importing every module of the three packages writes no file, starts no thread, sets nothing
    and prints nothing."""
    names = [".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in FILES]
    folders = {
        name: str(tmp_path / name) for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME", "TMPDIR")
    }
    for folder in folders.values():
        Path(folder).mkdir()
    done = run(IMPORT_ALL.format(names=names), cwd=tmp_path, **folders)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(folders)


BLOCKED = """
import sys
for name in (
    *("fastapi", "starlette", "uvicorn", "prometheus_client", "structlog", "pydantic_settings"),
):
    sys.modules[name] = None  # importing it raises ImportError
import service.engine.engine, service.batcher, service.http.schemas, service.tokenizer
print("imported")
"""


def test_the_engine_without_http() -> None:
    """The engine, the batcher and the schemas can be imported where no web framework is
    installed."""
    done = run(BLOCKED)
    assert (done.returncode, done.stdout, done.stderr) == (0, "imported\n", "")


def test_a_front_end_without_the_engine() -> None:
    """A front end imports neither torch nor transformers, nor what keeps the metrics."""
    done = run(
        "import sys, service.workers.front_end; print({'torch', 'transformers',"
        " 'prometheus_client'} & set(sys.modules))"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "set()\n", "")


UNACCELERATED = """
import sys
sys.modules["triton"] = None  # importing it raises ImportError
import torch
from adapters import backbone
from service.engine.engine import Engine
from service.engine.slots import Slots
cpu = torch.device("cpu")
Engine(backbone.load({folder!r}), Slots(1, cpu, torch.float32), cpu, torch.float32)
print("built")
"""


def test_a_cpu_s_engine_does_without_triton(bert_folder: Path) -> None:
    """An engine on a CPU can be built where Triton is not installed."""
    done = run(UNACCELERATED.format(folder=str(bert_folder)))
    assert (done.returncode, done.stdout, done.stderr) == (0, "built\n", "")

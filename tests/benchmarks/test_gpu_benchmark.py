"""The benchmark of a GPU, through its door, on this CPU, at sizes that measure nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters import backbone as backbones
from adapters.backbone import Backbone
from benchmarks.gpu import half
from benchmarks.gpu.__main__ import PARTS, main
from benchmarks.gpu.parts import ceilings, latency
from service.engine.engine import Engine
from tests.conftest import ROOT

# What a lent machine lacks; its own packages look for some of them, and find that they are not
# there.
WITHOUT = """
import sys
LACKING = {"fastapi", "starlette", "uvicorn", "pydantic", "pydantic_core", "pydantic_settings", "prometheus_client",
    "orjson", "structlog", "rapidfuzz", "opentelemetry", "typer", "rich", "matplotlib"}
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in LACKING else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Without, sys.meta_path)
from benchmarks.gpu.__main__ import main
code = main(sys.argv[1:])
assert not LACKING & {name.partition(".")[0] for name in sys.modules}
sys.exit(code)
"""
RATIOS = {"mixed / bare", "mixed, as copies / copies", "mixed, as copies / one model"}
RATIOS |= {"encoder / matmul, TFLOP/s", "mixed / matmul, TFLOP/s"}


@pytest.fixture
def arguments(tmp_path: Path, bert_folder: Path) -> list[str]:
    options = {"--device": "cpu", "--backbone": bert_folder, "--out": tmp_path / "gpu.json"}
    return ["--tiny", *(str(part) for option in options.items() for part in option)]


@pytest.fixture
def found(tmp_path: Path) -> Callable[[], Any]:
    """What was written."""
    return lambda: json.loads((tmp_path / "gpu.json").read_text())


def test_every_part_where_no_web_framework_is(
    arguments: list[str], found: Callable[[], Any], tmp_path: Path
) -> None:
    """Where neither pydantic nor FastAPI nor typer is installed, all parts run, parity first, and
    every figure is there."""
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "it is a good film"}\n{"text": "not very good and awful"}\n')
    command = [sys.executable, "-c", WITHOUT, *arguments, "--texts", str(texts)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = found()
    assert list(result["parts"]) == list(PARTS)
    assert result["parity"] == "passed"
    assert {"torch", "transformers", "triton", "python", "cuda"} <= set(result["versions"])
    assert {part["parity"] for name, part in result["parts"].items() if name != "parity"} == {
        "passed"
    }
    parts = {name: part["result"] for name, part in result["parts"].items()}
    # two backbones and dtypes; none, one and many adapters, transformers' own
    assert len(parts["parity"]["cases"]) == 16
    assert "with graphs" in parts["latency"]
    assert set(parts["kernels"]) == {"one text", "a full batch"}
    assert parts["memory"]["full_copies"]["2"] > 0
    for workload in parts["throughput"].values():
        assert set(workload["ratios"]) == RATIOS
    for workload in ("length 16", "SST-2's lengths"):
        assert parts["growth"][workload]["2 tasks"]["ratio"] == {"median": 1, "low": 1, "high": 1}
    assert parts["loads"]["adapter"]["median_ms"] <= parts["loads"]["adapter"]["p99_ms"]
    assert set(parts["pets"]) == {"base", "large"}
    assert set(parts["pets"]["large"]["queries"]) == {"1", "4"}
    assert parts["loras"]["SST-2's lengths, 4 rows"]["mixed / peft"]["median"] > 0


def test_an_engine_that_answers_wrongly(
    arguments: list[str],
    found: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Parity is looked at first even where it was not asked for, and where it fails every later
    figure says so."""
    run = Engine.run
    monkeypatch.setattr(
        Engine, "run", lambda self, rows: [[x + 1 for x in row] for row in run(self, rows)]
    )
    assert main([*arguments, "--parts", "ceilings"]) == 1
    result = found()
    assert list(result["parts"]) == ["parity", "ceilings"]
    assert result["parity"] == result["parts"]["ceilings"]["parity"] == "FAILED"
    failed = {
        name
        for name, case in result["parts"]["parity"]["result"]["cases"].items()
        if not case["passed"]
    }
    assert failed == {
        name for name in result["parts"]["parity"]["result"]["cases"] if "task" in name
    }
    assert "*** parity FAILED ***" in capsys.readouterr().out


def test_a_run_that_goes_on(
    arguments: list[str],
    found: Callable[[], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the budget or an error left out or cut short is measured by the next run; what is whole
    is not measured again."""
    arguments += ["--parts", "ceilings,latency"]
    assert main([*arguments, "--budget-s", "0"]) == 1
    assert found()["parity"] == "not checked"
    assert "skipped: the budget of 0 s was spent" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(ceilings, "measure", lambda _bench: 1 / 0)
        assert main(arguments) == 1
    first = found()
    assert first["parts"]["ceilings"]["error"] == "ZeroDivisionError: division by zero"
    assert first["parts"]["latency"]["result"]
    assert main(arguments) == 0
    second = found()
    assert second["parts"]["ceilings"]["result"]["tflops"]
    assert second["parts"]["latency"] == first["parts"]["latency"]
    capsys.readouterr()

    def measured(bench: Any) -> Any:
        bench.clock.__dict__["deadline"] = 0.0  # as if it had taken what was left
        return second["parts"]["ceilings"]["result"]

    with monkeypatch.context() as patch:
        patch.setattr(ceilings, "measure", measured)
        (tmp_path / "gpu.json").unlink()
        assert main([*arguments, "--parts", "ceilings"]) == 1
    assert "cut short by the budget" in capsys.readouterr().out
    assert main([*arguments, "--parts", "ceilings"]) == 0
    assert not found()["parts"]["ceilings"]["cut_short"]


def test_an_engine_with_graphs(
    arguments: list[str], found: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the engine has an option of CUDA graphs, one text is timed with them and without, and
    both answers compared."""
    asked = []

    class WithGraphs(Engine):
        def __init__(
            self, backbone: Any, slots: Any, device: Any, dtype: Any, *, graphs: bool = True
        ) -> None:
            super().__init__(backbone, slots, device, dtype)
            asked.append(graphs)

    monkeypatch.setattr(latency, "Engine", WithGraphs)
    assert main([*arguments, "--parts", "latency"]) == 0
    result = found()["parts"]["latency"]["result"]
    assert asked == [False, True]
    assert (
        set(result["without graphs"])
        == set(result["with graphs"])
        == {"device_ms", "end_to_end_ms"}
    )
    assert result["difference_of_answers"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--device", "cpu"],
            "--device is 'cpu', which would take hours at a GPU's sizes; expected --tiny with it",
        ),
        (["--parts", "latency,all"], "--parts has 'all'; expected of parity, "),
        (["--device", "tpu"], "--device is 'tpu'; expected cuda or cpu"),
    ],
)
def test_what_cannot_be_measured(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An option that makes no sense is refused by a sentence."""
    assert main(options) == 2
    assert message in capsys.readouterr().out


def test_the_backbone_to_carry(tmp_path: Path, embedded: Backbone) -> None:
    """The folder to carry is the embedded backbone in float16, half its size, and loads as any
    backbone does."""
    half.main(tmp_path)
    loaded = backbones.load(str(tmp_path))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 50 << 20
    assert (
        loaded.tokenizer.encode("a good film").ids == embedded.tokenizer.encode("a good film").ids
    )
    weight, wanted = (each.encoder.embeddings.word_embeddings.weight for each in (loaded, embedded))
    assert (weight - wanted).abs().max() < 1e-3

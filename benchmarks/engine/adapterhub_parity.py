"""Whether adapters compute the same here and in AdapterHub's library, in both directions, and what
is refused.

    python -m benchmarks.engine.adapterhub_parity

The library is imported as `adapters`, as ours is: it is installed into a virtual environment of its
own (var/adapterhub) and run without this repository on its path
(benchmarks/engine/adapterhub_side.py). Both sides get the same token ids, one text at a time, in
float32; weights of adapters and heads are random.

- from: its `save_adapter` → `python -m adapters convert` → the logits of our reference model
  against its own
- to: our file → `python -m adapters export` → the logits of its `load_adapter` against our
  reference model's
- refused: configurations that `convert` must refuse; where the tensors have the same names,
  `error_if_taken` is how far the logits would be off if the configuration were ignored
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner, Result

from adapters import backbone as backbones
from adapters.__main__ import app
from adapters.backbone import Backbone
from adapters.classifier import collate, from_adapter
from adapters.convert.adapterhub import CONFIG, NEEDED
from adapters.file import load
from adapters.text import encode
from tests.tiny import random_adapter, tiny_backbone
from training.hardware import hardware

REQUIREMENTS = ("adapters==1.3.0", "torch==2.13.0")
TOLERANCE = 1e-5  # relative to the largest logit, at least 1
TEXTS = [("it is a good film",), ("the plot was awful and not very good",), ("red, green or blue",)]
LABELS = ("no", "yes", "perhaps", "never")
OURS = {"mh_adapter": False, "output_adapter": True, "non_linearity": "gelu", "reduction_factor": 4}
HEADS: dict[str, dict[str, Any]] = {
    "dense": {"num_labels": 3},
    "linear": {"num_labels": 2, "layers": 1, "id2label": {0: "no", 1: "yes"}},
    "multi-label": {"num_labels": 4, "multilabel": True},
    "regression": {"num_labels": 1},
    "pooler": {"num_labels": 3, "layers": 1, "use_pooler": True},
    "of transformers": {"num_labels": 3, "static": True},
}
WITHOUT_EFFECT: dict[str, Any] = {
    "residual_before_ln": False,
    "adapter_residual_before_ln": True,
    "dropout": 0.5,
    "cross_adapter": True,
    "init_weights": "mam_adapter",
    "non_linearity": "gelu_python",
    "reduction_factor": 5.5,
}
REFUSED: list[dict[str, Any] | str] = [
    *({name: value} for name, value in {
        "original_ln_before": True,
        "original_ln_after": False,
        "ln_before": True,
        "ln_after": True,
        "mh_adapter": True,
        "is_parallel": True,
        "scaling": 2.0,
        "use_gating": True,
        "leave_out": [0],
        "phm_layer": True,
        "non_linearity": "gelu_new",
    }.items()),
    {"scaling": "learned"},
    {"non_linearity": "relu"},
    {"non_linearity": "swish"},
    *("seq_bn", "double_seq_bn", "par_bn", "seq_bn_inv", "compacter++"),
    *("lora", "ia3", "prefix_tuning", "mam"),
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One comparison: `question` is what AdapterHub's side is asked, `folder` where the adapter
    lies in its layout."""

    direction: Literal["from", "to", "refused"]
    backbone: Backbone
    what: str
    head: str
    folder: Path
    question: dict[str, Any]


def main(
    out: Annotated[Path, typer.Option(help="Where to write.")] = Path(
        "benchmarks/results/adapterhub_parity.json"
    ),
    environment: Annotated[Path, typer.Option(help="The virtual environment.")] = Path(
        "var/adapterhub"
    ),
) -> None:
    """Compare logits with AdapterHub's library; exit code 1 if one differs, or a refusal lacks."""
    python = installed(environment)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        known = [backbones.load()]
        known += [
            backbones.load(str(tiny_backbone(work / name, name)))
            for name in ("roberta", "xlm-roberta", "electra")
        ]
        saved, loaded = cases_from(known, work), cases_to(known, work)
        (work / "plan").write_text(
            json.dumps({"save": [c.question for c in saved], "load": [c.question for c in loaded]})
        )
        side = Path(__file__).with_name("adapterhub_side.py").resolve()
        subprocess.run([python, "-I", side, work / "plan", work / "answers"], cwd=work, check=True)
        answers = json.loads((work / "answers").read_text())
        results = [
            compare_from(case, answer) for case, answer in zip(saved, answers["save"], strict=True)
        ]
        results += [
            compare_to(case, answer) for case, answer in zip(loaded, answers["load"], strict=True)
        ]
    report(results, answers["versions"], out)
    if not all(result["as_expected"] for result in results):
        raise typer.Exit(1)


def installed(environment: Path) -> Path:
    """The interpreter of an environment that has AdapterHub's library; made if it is not there."""
    python = environment.absolute() / "bin" / "python"
    if not python.exists():
        venv.create(environment, with_pip=True)
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *REQUIREMENTS],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    return python


def cases_from(known: list[Backbone], work: Path) -> list[Case]:
    """What AdapterHub saves: every head on every backbone that has it, then single fields, then
    what must be refused."""
    wanted: list[tuple[Literal["from", "refused"], Backbone, dict[str, Any] | str, str]] = []
    for backbone in known:
        heads = [
            name
            for name in HEADS
            if backbone.has_pooler or name in ("dense", "linear", "multi-label", "regression")
        ]
        wanted += [("from", backbone, {}, head) for head in heads]
    wanted += [("from", known[0], {name: value}, "dense") for name, value in WITHOUT_EFFECT.items()]
    wanted += [("refused", known[0], config, "dense") for config in REFUSED]
    wanted += [("refused", known[-1], {}, "of transformers")]  # ELECTRA's own head has a GELU
    cases = []
    for direction, backbone, config, head in wanted:
        folder = work / f"saved-{len(cases)}"
        question = {
            "backbone": backbone.encoder.name_or_path,
            "folder": str(folder),
            "config": config if isinstance(config, str) else {**OURS, **config},
            "head": HEADS[head],
            "rows": rows(backbone),
        }
        what = (
            config
            if isinstance(config, str)
            else ", ".join(f"{name}={value}" for name, value in config.items())
        )
        cases.append(Case(direction, backbone, what, head, folder, question))
    return cases


def cases_to(known: list[Backbone], work: Path) -> list[Case]:
    """What we export: both poolings, with and without a dense layer, bottlenecks that divide the
    hidden size and do not."""
    cases = []
    for backbone in known:
        for pooling in ("cls", "pooler") if backbone.has_pooler else ("cls",):
            for dense in (False, True):
                for r in (8, 7):
                    file, folder = (
                        work / f"ours-{len(cases)}.safetensors",
                        work / f"exported-{len(cases)}",
                    )
                    data = random_adapter(
                        backbone,
                        "t",
                        LABELS[:3],
                        pooling=pooling,
                        dense=dense,
                        bottleneck=r,
                        seed=r,
                    )[2]
                    file.write_bytes(data)
                    assert invoke("export", file, folder).exit_code == 0
                    question = {
                        "backbone": backbone.encoder.name_or_path,
                        "folder": str(folder),
                        "rows": rows(backbone),
                    }
                    head = f"{pooling}, {'dense' if dense else 'linear'}"
                    cases.append(Case("to", backbone, f"bottleneck {r}", head, file, question))
    return cases


def compare_from(case: Case, answer: list[list[float]]) -> dict[str, Any]:
    out = case.folder.with_suffix(".safetensors")
    labels = ",".join(LABELS[: HEADS[case.head]["num_labels"]])
    options = [
        "--backbone",
        case.backbone.name,
        "--task",
        "t",
        "--labels",
        labels,
        "--max-length",
        64,
        "--out",
        out,
    ]
    result = invoke("convert", case.folder, *options)
    if case.direction == "from":
        return described(case) | measured(case.backbone, out, answer)
    found = described(case) | {"refused": result.stderr.strip().partition("converted: ")[2]}
    found["as_expected"] = result.exit_code == 2 and not out.exists()
    taken = json.loads((case.folder / CONFIG).read_text())
    taken["config"] = {name: values[0] for name, values in NEEDED.items()}
    (case.folder / CONFIG).write_text(json.dumps(taken))
    if invoke("convert", case.folder, *options).exit_code == 0:
        found["error_if_taken"] = measured(case.backbone, out, answer)["error"]
    return found


def compare_to(case: Case, answer: list[list[float]]) -> dict[str, Any]:
    return described(case) | measured(case.backbone, case.folder, answer)


def described(case: Case) -> dict[str, Any]:
    return {
        "direction": case.direction,
        "backbone": case.backbone.config.model_type,
        "config": case.what or "as ours",
        "head": case.head,
    }


def measured(backbone: Backbone, file: Path, answer: list[list[float]]) -> dict[str, Any]:
    """The largest difference of a logit, relative to the largest logit (at least 1)."""
    theirs = torch.tensor(answer)
    with torch.no_grad():
        ours = from_adapter(backbone, load(file))(collate(encode(backbone.tokenizer, TEXTS, 64)))
    error = ((ours - theirs).abs().max() / max(1.0, theirs.abs().max())).item()
    return {
        "largest_logit": theirs.abs().max().item(),
        "error": error,
        "as_expected": error < TOLERANCE,
    }


def rows(backbone: Backbone) -> list[tuple[list[int], list[int]]]:
    return [(row.ids, row.types) for row in encode(backbone.tokenizer, TEXTS, 64)]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def report(results: list[dict[str, Any]], versions: dict[str, str], out: Path) -> None:
    result = {
        "command": " ".join(["python", "-m", "benchmarks.engine.adapterhub_parity", *sys.argv[1:]]),
        "tolerance": TOLERANCE,
        "their_versions": versions,
        "our_versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "hardware": hardware(torch.device("cpu")),
        "largest_error": {
            way: max(r["error"] for r in results if r["direction"] == way) for way in ("from", "to")
        },
        "cases": results,
    }
    out.write_text(json.dumps(result, indent=2) + "\n")
    table = Table(
        "direction", "backbone", "configuration", "head", "error (if taken)", "as expected"
    )
    for r in results:
        shown = f"{r['error']:.1e}" if "error" in r else "refused"
        shown += f" ({r['error_if_taken']:.1e})" if "error_if_taken" in r else ""
        table.add_row(
            r["direction"],
            r["backbone"],
            r["config"],
            r["head"],
            shown,
            "yes" if r["as_expected"] else "NO",
        )
    console = Console()
    console.print(table)
    console.print(f"largest errors {result['largest_error']}; written to {out}")


if __name__ == "__main__":
    typer.run(main)

"""PEFT's classifiers over HTTP: pushed as the folders that the real `peft` wrote, and served in one
batch with the shipped adapters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import peft
import pytest
import torch
import transformers

from adapters.backbone import Backbone, location
from adapters.classifier import collate
from adapters.file import read_summary
from adapters.text import TextInput, encode
from tests.adapters.test_adapters_cli import assert_refused, invoke
from tests.service.conftest import Server, running, sample

# peft 0.21 asks transformers 5 by a name that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
SHIPPED = Path(__file__).parents[2] / "store"
LABELS = ("no", "perhaps", "yes")
# one with other ranks and scales in its layers, one that also changes the pooler
FORMS: dict[str, dict[str, Any]] = {
    "peft-texts": {
        "target_modules": ["query", "value"],
        "rank_pattern": {r"layer\.5\.attention\.self\.query": 16},
        "alpha_pattern": {"value": 3},
    },
    "peft-pairs": {"target_modules": "all-linear", "use_rslora": True},
}
TEXT: TextInput = ("it is a good film",)
PAIR: TextInput = ("it is a good film", "the plot was awful")


@dataclass
class Served:
    """A server with the shipped adapters and those of FORMS, and peft's own models of these."""

    server: Server
    models: dict[str, Any]
    folders: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folders = tmp_path_factory.mktemp("peft")
    models = {task: written(folders / task, form) for task, form in FORMS.items()}
    store = tmp_path_factory.mktemp("served") / "store"
    with running(store, seed=SHIPPED) as server:
        for task in FORMS:
            pairs = ["--text-pair"] if task == "peft-pairs" else []
            pushed = push(folders / task, server, "--task", task, *pairs)
            assert pushed.exit_code == 0, pushed.output
        yield Served(server, models, folders)


def written(folder: Path, form: dict[str, Any]) -> Any:
    """A folder as peft writes it for the embedded backbone, with A, B and the head moved from where
    they start."""
    torch.manual_seed(0)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        location("embedded"), num_labels=len(LABELS)
    )
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, **form)
    model = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5)
    model.save_pretrained(folder)
    return model


def push(folder: Path, server: Server, *options: str) -> Any:
    fixed = ("--url", server.url, "--backbone", "embedded", "--labels", ",".join(LABELS))
    return invoke("push", folder, *fixed, *options)


@pytest.mark.parametrize("ours", FORMS)
def test_beside_the_shipped_adapters(ours: str, served: Served, embedded: Backbone) -> None:
    """In one batch with all shipped tasks of single texts, or of pairs, a pushed folder answers
    peft's own logits, and the shipped tasks answer what they do alone."""
    text = PAIR if ours == "peft-pairs" else TEXT
    tasks = [
        *(
            path.stem
            for path in sorted(SHIPPED.glob("*.safetensors"))
            if read_summary(path).spec.text_pair == (text == PAIR)
        ),
        ours,
    ]
    assert len(tasks) >= 5
    with served.server.client() as client:
        before = {name: sample(client, f"adamix_batch_tasks_{name}") for name in ("count", "sum")}
        together = logits(client, tasks, text)
        after = {name: sample(client, f"adamix_batch_tasks_{name}") for name in ("count", "sum")}
        assert after["count"] - before["count"] == 1
        assert after["sum"] - before["sum"] == len(tasks)
        for task in tasks:
            alone = logits(client, [task], text)[task]
            assert together[task] == pytest.approx(alone, rel=1e-4, abs=1e-4)
        batch = collate(encode(embedded.tokenizer, [text], 128))
        with torch.no_grad():
            wanted = served.models[ours](
                input_ids=batch.ids, token_type_ids=batch.types, attention_mask=batch.mask
            ).logits[0]
        found = [together[ours][label] for label in LABELS]
        assert found == pytest.approx(wanted.tolist(), abs=1e-4)


def _without_base(folder: Path) -> None:
    _config(folder, base_model_name_or_path=None)


def _two_adapters(folder: Path) -> None:
    shutil.copytree(folder, folder / "second")


def _unmatched(folder: Path) -> None:
    _config(folder, target_modules=["query", "value", "q_proj"])


def _ada_lora(folder: Path) -> None:
    _config(folder, peft_type="ADALORA")


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_base, "it names no base model; expected --backbone NAME"),
        (_two_adapters, "holds 2 adapters, its own, 'second'; expected the folder of one"),
        (_unmatched, "has 'q_proj' in target_modules, which names no module of backbone"),
        (_ada_lora, "adapter_config.json has peft_type 'ADALORA'"),
    ],
)
def test_a_refused_folder_is_not_stored(
    change: Callable[[Path], None], message: str, served: Served, tmp_path: Path
) -> None:
    """A folder that cannot be converted is refused before anything is sent."""
    shutil.copytree(served.folders / "peft-texts", folder := tmp_path / "folder")
    change(folder)
    backbone = [] if change is _without_base else ["--backbone", "embedded"]
    options = ("--url", served.server.url, "--task", "refused", "--labels", ",".join(LABELS))
    assert_refused(invoke("push", folder, *options, *backbone), message)
    with served.server.client() as client:
        assert client.get("/adapters/refused").status_code == 404


def test_options_of_a_push(served: Served) -> None:
    """A folder needs a task, and a file takes no option of the conversion."""
    folder = served.folders / "peft-texts"
    assert_refused(push(folder, served.server), "is a folder, which is converted first")
    file = SHIPPED / "sst2.safetensors"
    assert_refused(push(file, served.server), "--backbone is for a folder to convert, and")


def logits(client: httpx2.Client, tasks: list[str], text: TextInput) -> dict[str, dict[str, float]]:
    """Each task's logits by their labels."""
    inputs = {"text": text[0], "text_pair": text[1]} if len(text) == 2 else text[0]
    question = {"inputs": inputs, "parameters": {"function_to_apply": "none", "top_k": 100}}
    answer = client.post("/predict", params={"task": tasks}, json=question)
    assert answer.status_code == 200, answer.text
    found = answer.json() if len(tasks) > 1 else {tasks[0]: answer.json()}
    return {task: {row["label"]: row["score"] for row in rows} for task, rows in found.items()}

"""PEFT's folders → adapter files and back, against the real `peft`; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers
from torch import Tensor

from adapters import backbone as backbones
from adapters.classifier import collate
from adapters.file import Adapter, load, parse
from adapters.text import encode
from service.engine.engine import Engine
from service.engine.row import Row
from service.engine.slots import Slots
from tests.adapters.test_adapters_cli import assert_refused, invoke
from tests.tiny import random_adapter, tiny_backbone

# peft 0.21 asks transformers 5 by a name that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
CPU = torch.device("cpu")
TEXTS: list[tuple[str, ...]] = [("it is a good film",), ("the plot was awful",), ("red",)]
FORMS: list[dict[str, Any]] = [
    {"target_modules": ["query", "value"]},
    {"target_modules": ["query"], "use_rslora": True, "r": 5},
    {"target_modules": r".*layer\.\d+\.(attention\.self\.key|output\.dense)"},
    {"target_modules": ["query", "intermediate.dense"], "layers_to_transform": [1]},
    {
        "target_modules": ["query", "key", "value"],
        "rank_pattern": {r"layer\.1\.attention\.self\.query": 6, "value": 2},
        "alpha_pattern": {"key": 3, r"layer\.0\.attention\.self\.value": 11},
    },
]


@pytest.fixture(scope="module", params=["bert", "roberta"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_backbone(tmp_path_factory.mktemp("base"), request.param)


def classifier(base: Path, labels: int = 3) -> Any:
    torch.manual_seed(3)
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=labels
    ).eval()


def written(base: Path, out: Path, **form: Any) -> Any:
    """A folder as peft writes it, with A, B and the head moved from where they start."""
    options = {"task_type": "SEQ_CLS", "r": 4, "lora_alpha": 6, **form}
    model = peft.get_peft_model(classifier(base), peft.LoraConfig(**options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5)
                assert "lora_" in name or "modules_to_save" in name
    model.save_pretrained(out)
    return model


def logits_of(model: Any, base: Path) -> Tensor:
    batch = collate(encode(backbones.load(str(base)).tokenizer, TEXTS, 32))
    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask.long()}
    if batch.types is not None:
        inputs["token_type_ids"] = batch.types
    with torch.no_grad():
        logits: Tensor = model(**inputs).logits
    return logits


def engine_logits(adapter: Adapter, base: Path) -> Tensor:
    backbone = backbones.load(str(base))
    engine = Engine(backbone, Slots(2, CPU, torch.float32), CPU, torch.float32)
    rows = [Row(adapter, row.ids, row.types) for row in encode(backbone.tokenizer, TEXTS, 32)]
    return torch.tensor([list(row) for row in engine.run(rows)])


def convert(source: Path, out: Path, *more: str) -> Any:
    labels = ("--labels", "a,b,c", "--max-length", "32")
    return invoke("convert", str(source), "--task", "t", "--out", str(out), *labels, *more)


@pytest.mark.parametrize("form", FORMS)
def test_parity(folder: Path, tmp_path: Path, form: dict[str, Any]) -> None:
    """The engine gives peft's logits for a converted folder, whatever its ranks, alphas, layers
    and modules."""
    model = written(folder, tmp_path / "peft", **form)
    result = convert(tmp_path / "peft", tmp_path / "t.safetensors")
    assert result.exit_code == 0, result.output
    adapter = load(tmp_path / "t.safetensors")
    assert adapter.spec.kind == "lora"
    expected = logits_of(model, folder)
    torch.testing.assert_close(engine_logits(adapter, folder), expected, atol=1e-4, rtol=0)
    assert (expected - logits_of(model.unload(), folder)).abs().max() > 1e-2


def test_a_trained_pooler(tmp_path: Path) -> None:
    """BERT's pooler, saved as a whole, becomes the dense layer of the head."""
    base = tiny_backbone(tmp_path / "base", "bert")
    form = {"target_modules": ["query"], "modules_to_save": ["classifier", "pooler"]}
    model = written(base, tmp_path / "peft", **form)
    assert convert(tmp_path / "peft", tmp_path / "t.safetensors").exit_code == 0
    adapter = load(tmp_path / "t.safetensors")
    expected = logits_of(model, base)
    torch.testing.assert_close(engine_logits(adapter, base), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("first_layer", [0, 1])
def test_export(folder: Path, tmp_path: Path, first_layer: int) -> None:
    """`PeftModel.from_pretrained` computes the same logits from an exported folder, which converts
    back."""
    backbone = backbones.load(str(folder))
    options: dict[str, Any] = {"pooling": "cls", "dense": True, "first_layer": first_layer}
    ranks: Any = {"query": 3, "down": 5, "up": 3}
    data = random_adapter(
        backbone, "t", ["a", "b", "c"], ranks=ranks, dtype=torch.float32, **options
    )[2]
    (tmp_path / "t.safetensors").write_bytes(data)
    out = tmp_path / "peft"
    result = invoke("export", str(tmp_path / "t.safetensors"), str(out), "--to", "peft")
    assert result.exit_code == 0, result.output
    expected = engine_logits(parse(data), folder)
    model = peft.PeftModel.from_pretrained(classifier(folder), out).eval()
    torch.testing.assert_close(logits_of(model, folder), expected, atol=1e-4, rtol=0)
    assert convert(out, tmp_path / "again.safetensors").exit_code == 0
    again = engine_logits(load(tmp_path / "again.safetensors"), folder)
    torch.testing.assert_close(again, expected, atol=1e-4, rtol=0)


def _config(**changes: Any) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        path = place / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def _pickled(place: Path) -> None:
    (place / "adapter_model.safetensors").rename(place / "adapter_model.bin")


def _two(place: Path) -> None:
    (place / "other").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (place / "other" / name).write_bytes((place / name).read_bytes())


def _tensors(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def changed(place: Path) -> None:
        path = place / "adapter_model.safetensors"
        tensors = safetensors.torch.load(path.read_bytes())
        change(tensors)
        path.write_bytes(safetensors.torch.save(tensors))

    return changed


def _without_b(tensors: dict[str, Tensor]) -> None:
    del tensors[next(name for name in tensors if "lora_B" in name)]


REFUSED: list[tuple[Callable[[Path], None], str]] = [
    (_config(use_dora=True), "use_dora"),
    (_config(bias="all"), "bias 'all'"),
    (_config(peft_type="ADALORA"), "peft_type 'ADALORA'"),
    (_config(task_type="CAUSAL_LM"), "task_type 'CAUSAL_LM'"),
    (_config(modules_to_save=["classifier", "encoder.layer.0"]), "a part of the encoder"),
    (_config(modules_to_save=["classifier", "word_embeddings"]), "embeddings"),
    (_config(target_modules=["query", "q_proj"]), "'q_proj' in target_modules"),
    (_config(target_modules=["query", "value"]), "no LoRA at"),
    (_config(target_modules=["query", "word_embeddings"]), "embeddings"),
    (_config(base_model_name_or_path=None), "names no base model"),
    (_config(r=7), "expected 7"),
    (_config(lora_alpha=0), "lora_alpha"),
    (_config(a_new_field=3), "a_new_field"),
    (_pickled, "pickle"),
    (_two, "2 adapters"),
    (_tensors(_without_b), "no lora_B"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_refused(
    tmp_path: Path, bert_folder: Path, change: Callable[[Path], None], message: str
) -> None:
    """What an adapter file cannot say, or a folder does not hold, is refused by name; nothing is
    written."""
    written(bert_folder, tmp_path / "peft", target_modules=["query"])
    change(tmp_path / "peft")
    result = convert(tmp_path / "peft", tmp_path / "t.safetensors")
    assert_refused(result, message)
    assert not (tmp_path / "t.safetensors").exists()

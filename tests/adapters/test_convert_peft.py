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
from adapters.backbone import Backbone
from adapters.classifier import collate, from_adapter
from adapters.convert import peft_modules
from adapters.file import Adapter, load, parse
from adapters.text import encode
from service.engine.engine import Engine
from service.engine.row import Row
from service.engine.slots import Slots
from tests.adapters.test_adapters_cli import assert_refused, invoke
from tests.tiny import random_adapter, tiny_backbone

pytestmark = [
    # peft 0.21 asks transformers 5 by a name that is deprecated there
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True:UserWarning"),
]
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
    # all modules, BERT's pooler with them
    {"target_modules": "all-linear"},
    {"target_modules": ["dense"], "exclude_modules": ["intermediate.dense"]},
    # the lowest rank and the highest; layers above without LoRA
    {"target_modules": ["value"], "r": 1, "layers_to_transform": 0},
    {"target_modules": ["key", "intermediate.dense"], "r": 256, "init_lora_weights": "gaussian"},
    {"target_modules": ["query"], "layers_to_transform": [0], "layers_pattern": "layer"},
    {"target_modules": ["query"], "fan_in_fan_out": True, "lora_dropout": 0.5},
]


@pytest.fixture(scope="module", params=["bert", "roberta", "xlm-roberta", "camembert"])
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


def convert(source: Path, out: Path, *more: str, labels: str | None = "a,b,c") -> Any:
    options = ("--task", "t", "--out", str(out), "--max-length", "32")
    return invoke("convert", source, *options, *(["--labels", labels] if labels else []), *more)


@pytest.mark.parametrize("form", FORMS)
def test_parity(folder: Path, tmp_path: Path, form: dict[str, Any]) -> None:
    """The engine and the reference model give peft's logits for a converted folder, whatever its
    ranks, alphas, layers and modules."""
    model = written(folder, tmp_path / "peft", **form)
    result = convert(tmp_path / "peft", tmp_path / "t.safetensors")
    assert result.exit_code == 0, result.output
    adapter = load(tmp_path / "t.safetensors")
    assert adapter.spec.kind == "lora"
    expected = logits_of(model, folder)
    torch.testing.assert_close(engine_logits(adapter, folder), expected, atol=1e-4, rtol=0)
    backbone = backbones.load(str(folder))
    with torch.no_grad():
        found = from_adapter(backbone, adapter)(collate(encode(backbone.tokenizer, TEXTS, 32)))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (expected - logits_of(model.unload(), folder)).abs().max() > 1e-2


FURTHER: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("mpnet", {}, {"target_modules": ["q", "v"]}),
    ("mpnet", {}, {"target_modules": "all-linear"}),
    ("mpnet", {}, {"target_modules": ["o", "output.dense"], "layers_to_transform": [1]}),
    *(
        ("modernbert", {"classifier_pooling": pooling, **bias}, form)
        for pooling, bias, form in (
            ("cls", {}, {"target_modules": ["Wqkv"]}),
            ("mean", {"classifier_bias": True, "norm_bias": True}, {"target_modules": ["Wi"]}),
            (
                "mean",
                {},
                {
                    "target_modules": "all-linear",
                    "rank_pattern": {"Wqkv": 2, "mlp.Wo": 5},
                    "alpha_pattern": {"Wi": 3},
                },
            ),
        )
    ),
]


@pytest.mark.parametrize(("family", "changes", "form"), FURTHER)
def test_parity_of_further_families(
    tmp_path: Path, family: str, changes: dict[str, Any], form: dict[str, Any]
) -> None:
    """MPNet's and ModernBERT's classifiers give peft's logits, too: a LoRA of a module that makes
    queries, keys and values becomes one of each."""
    base = tiny_backbone(tmp_path / "base", family, **changes)
    saved = ["classifier", *(["head"] if family == "modernbert" else [])]
    model = written(base, tmp_path / "peft", modules_to_save=saved, **form)
    result = convert(tmp_path / "peft", tmp_path / "t.safetensors")
    assert result.exit_code == 0, result.output
    adapter = load(tmp_path / "t.safetensors")
    expected = logits_of(model, base)
    torch.testing.assert_close(engine_logits(adapter, base), expected, atol=1e-4, rtol=0)
    assert (expected - logits_of(model.unload(), base)).abs().max() > 1e-2


def test_modernbert_s_hidden_layer_is_needed(tmp_path: Path) -> None:
    """A ModernBERT folder without the classifier's hidden layer is refused, and the sentence says
    what to save."""
    base = tiny_backbone(tmp_path / "base", "modernbert")
    written(base, tmp_path / "peft", target_modules=["Wqkv"])
    result = convert(tmp_path / "peft", tmp_path / "t.safetensors")
    assert_refused(result, "expected modules_to_save with 'head' and 'classifier'")
    assert not (tmp_path / "t.safetensors").exists()


def test_a_trained_pooler(tmp_path: Path) -> None:
    """BERT's pooler, saved as a whole, becomes the dense layer of the head."""
    base = tiny_backbone(tmp_path / "base", "bert")
    form = {"target_modules": ["query"], "modules_to_save": ["classifier", "pooler"]}
    model = written(base, tmp_path / "peft", **form)
    assert convert(tmp_path / "peft", tmp_path / "t.safetensors").exit_code == 0
    adapter = load(tmp_path / "t.safetensors")
    expected = logits_of(model, base)
    torch.testing.assert_close(engine_logits(adapter, base), expected, atol=1e-4, rtol=0)


def test_names_of_labels(tmp_path: Path) -> None:
    """The labels are those of `config.json` beside the adapter, else the base model's own if they
    are as many; transformers' `LABEL_0` is no name, so `--labels` is asked for."""
    base = tiny_backbone(tmp_path / "base", "bert")
    written(base, tmp_path / "peft", target_modules=["query"])
    out = tmp_path / "t.safetensors"
    unnamed = "does not name the 3 rows of its head; expected --labels with 3 names"
    assert_refused(convert(tmp_path / "peft", out, labels=None), unnamed)
    for names, told in ((["x", "y"], False), (["x", "y", "z"], True)):
        config = json.loads((base / "config.json").read_text())
        config["id2label"] = dict(enumerate(names))
        (base / "config.json").write_text(json.dumps(config))
        result = convert(tmp_path / "peft", out, labels=None)
        if not told:
            assert_refused(result, unnamed)
    assert load(out).spec.labels == ("x", "y", "z")
    own = {
        "id2label": {"2": "c", "0": "a", "1": "b"},
        "problem_type": "multi_label_classification",
    }
    (tmp_path / "peft" / "config.json").write_text(json.dumps(own))
    assert convert(tmp_path / "peft", out, labels=None).exit_code == 0
    spec = load(out).spec
    assert (spec.labels, spec.problem_type) == (("a", "b", "c"), "multi_label_classification")


def test_other_backbones(tmp_path: Path) -> None:
    """A backbone of another family, depth or width, one that is quantised, and an ELECTRA
    classifier are refused by what was found."""
    base = tiny_backbone(tmp_path / "base", "bert")
    written(base, tmp_path / "peft", target_modules=["query"])
    out = tmp_path / "t.safetensors"
    quantised = tiny_backbone(tmp_path / "quantised", "bert")
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantised / "config.json").write_text(json.dumps(config))
    for other, message in (
        (
            tiny_backbone(tmp_path / "a", "roberta"),
            "the file is for a 'bert' backbone; expected 'r",
        ),
        (
            tiny_backbone(tmp_path / "b", "bert", layers=1),
            "has LoRA at 'encoder.layer.1.attention.self.query'; backbone",
        ),
        (
            tiny_backbone(tmp_path / "c", "bert", layers=3),
            "has no LoRA at 'encoder.layer.2.attention.self.query', which target_modules name",
        ),
        (
            tiny_backbone(tmp_path / "d", "bert", hidden=48),
            "is for 32 inputs and 32 outputs; expected 48 and 48",
        ),
        (tiny_backbone(tmp_path / "e", "bert", pooler=False), "but the checkpoint of"),
        (quantised, "has a quantization_config, which quantises its weights"),
    ):
        result = convert(tmp_path / "peft", out, "--backbone", str(other))
        assert_refused(result, message)
    electra = tiny_backbone(tmp_path / "electra", "electra")
    written(electra, tmp_path / "of-electra", target_modules=["query"])
    assert_refused(convert(tmp_path / "of-electra", out), "whose head has a GELU")
    assert not out.exists()


def test_export_of_mpnet(tmp_path: Path) -> None:
    """MPNet's modules have names of their own in an exported folder."""
    test_export(tiny_backbone(tmp_path / "mpnet", "mpnet"), tmp_path, 0)


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
    again = tmp_path / "again.safetensors"
    assert_refused(convert(out, again), f"backbone './{folder.name}' is no folder")
    assert convert(out, again, "--backbone", str(folder)).exit_code == 0
    torch.testing.assert_close(engine_logits(load(again), folder), expected, atol=1e-4, rtol=0)


def test_export_with_the_backbone_s_own_pooler(tmp_path: Path) -> None:
    """A head over BERT's own pooler is exported as the classifier alone: PEFT takes the pooler from
    the base model."""
    base = tiny_backbone(tmp_path / "base", "bert")
    backbone = backbones.load(str(base))
    data = random_adapter(
        backbone, "t", ["a", "b", "c"], ranks={"value": 4}, pooling="pooler", dtype=torch.bfloat16
    )[2]
    (tmp_path / "t.safetensors").write_bytes(data)
    out = tmp_path / "peft"
    assert invoke("export", tmp_path / "t.safetensors", out, "--to", "peft").exit_code == 0
    weights = safetensors.torch.load_file(out / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert not any("pooler" in name for name in weights)
    expected = engine_logits(parse(data), base)
    model = peft.PeftModel.from_pretrained(classifier(base), out).eval()
    torch.testing.assert_close(logits_of(model, base), expected, atol=1e-4, rtol=0)
    result = convert(out, tmp_path / "again.safetensors", "--backbone", str(base))
    assert result.exit_code == 0, result.output
    again = load(tmp_path / "again.safetensors")
    assert again.spec.pooling == "pooler"
    torch.testing.assert_close(engine_logits(again, base), expected, atol=1e-4, rtol=0)


def test_the_embedded_backbone_by_its_published_name(tmp_path: Path, embedded: Backbone) -> None:
    """An export names the embedded backbone by its Hugging Face id, as PEFT finds it; a folder that
    names it so is converted on the embedded one, without a network."""
    data = random_adapter(embedded, "t", ["a", "b"], **LORA)[2]
    (tmp_path / "t.safetensors").write_bytes(data)
    out = tmp_path / "peft"
    assert invoke("export", tmp_path / "t.safetensors", out, "--to", "peft").exit_code == 0
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    result = convert(out, tmp_path / "again.safetensors", labels="a,b")
    assert result.exit_code == 0, result.output
    again = load(tmp_path / "again.safetensors")
    assert again.spec.backbone == parse(data).spec.backbone
    assert again.spec.training["base_model_name_or_path"] == config["base_model_name_or_path"]


LORA: dict[str, Any] = {"ranks": {"query": 4}, "pooling": "cls", "dense": True}
NOT_EXPORTED: list[tuple[str, dict[str, Any], str]] = [
    ("bert", {"pooling": "cls", "dense": True}, "'t' is of kind 'bottleneck', which PEFT does not"),
    ("electra", LORA, "the backbone is a 'electra', whose classifier in transformers has another"),
    (
        "bert",
        {**LORA, "pooling": "mean", "dense": False},
        "the head is mean without a dense layer, which transformers' classifier of a bert does not"
        " have; expected pooler without a dense layer or cls with a dense layer",
    ),
    ("bert", {**LORA, "pooling": "pooler"}, "the head is pooler with a dense layer"),
    ("bert", {**LORA, "dense": False}, "the head is cls without a dense layer"),
    ("bert", {"ranks": {"query": 4}, "template": "{text} {mask}"}, "the head is mask with a dense"),
    ("roberta", {**LORA, "pooling": "pooler", "dense": False}, "expected cls with a dense layer"),
]


@pytest.mark.parametrize(("family", "form", "message"), NOT_EXPORTED)
def test_not_exported(tmp_path: Path, family: str, form: dict[str, Any], message: str) -> None:
    """A kind, a family or a head that PEFT's classifiers do not have is refused by name, and no
    folder is written."""
    backbone = backbones.load(str(tiny_backbone(tmp_path / "base", family)))
    (tmp_path / "t.safetensors").write_bytes(random_adapter(backbone, "t", ["a", "b"], **form)[2])
    result = invoke("export", tmp_path / "t.safetensors", tmp_path / "out", "--to", "peft")
    assert_refused(result, message)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "t.safetensors"}


def test_an_export_takes_no_other_s_place(tmp_path: Path, bert: Backbone) -> None:
    """A folder with something in it, a file, or a place that is not there is refused, and left as
    it is."""
    path = tmp_path / "t.safetensors"
    path.write_bytes(random_adapter(bert, "t", ["a", "b"], **LORA)[2])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file", "none/out"):
        result = invoke("export", path, tmp_path / name, "--to", "peft")
        assert_refused(result, "t.safetensors cannot be exported: ")
    assert {path.name for path in tmp_path.iterdir()} == {"full", "file", "t.safetensors"}
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
    assert (tmp_path / "full" / "mine").read_text() == (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_folder_in_half_precision(tmp_path: Path, bert_folder: Path, dtype: torch.dtype) -> None:
    """A folder whose tensors are in half precision computes what peft makes of it on the base model
    in float32."""
    written(bert_folder, tmp_path / "peft", target_modules=["query", "output.dense"])
    path = tmp_path / "peft" / "adapter_model.safetensors"
    tensors = safetensors.torch.load(path.read_bytes())
    path.write_bytes(safetensors.torch.save({name: t.to(dtype) for name, t in tensors.items()}))
    model = peft.PeftModel.from_pretrained(classifier(bert_folder), tmp_path / "peft").eval()
    out = tmp_path / "t.safetensors"
    assert convert(tmp_path / "peft", out, "--dtype", str(dtype).split(".")[1]).exit_code == 0
    assert {tensor.dtype for tensor in load(out).tensors.values()} == {dtype}
    expected = logits_of(model, bert_folder)
    torch.testing.assert_close(engine_logits(load(out), bert_folder), expected, atol=1e-4, rtol=0)


def test_a_base_model_that_was_quantised_in_training(tmp_path: Path, bert_folder: Path) -> None:
    """PEFT saves in `README.md` alone that the base model was quantised in training; `config.json`
    may say it, too. A folder without both computes what peft makes of it on the base model in
    floating point."""
    model = written(bert_folder, tmp_path / "peft", target_modules=["query"])
    out = tmp_path / "t.safetensors"
    said = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (tmp_path / "peft" / "config.json").write_text(json.dumps(said))
    assert_refused(
        convert(tmp_path / "peft", out),
        "config.json says that the base model was quantised during training ({'load_in_4bit': True",
    )
    assert not out.exists()
    (tmp_path / "peft" / "config.json").unlink()
    (tmp_path / "peft" / "README.md").unlink()
    assert convert(tmp_path / "peft", out).exit_code == 0
    expected = logits_of(model, bert_folder)
    torch.testing.assert_close(engine_logits(load(out), bert_folder), expected, atol=1e-4, rtol=0)


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


def _plus(name: str, *shape: int) -> Callable[[Path], None]:
    """With one more tensor."""
    return _tensors(lambda tensors: tensors.update({f"base_model.model.{name}": torch.ones(shape)}))


def _many(place: Path) -> None:
    """With as many tensors as take minutes to be looked through, and nothing in them."""
    path = place / "adapter_model.safetensors"
    entry = b'"base_model.model.bert.%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    head = b"{%s}" % b",".join(entry % i for i in range(100_000))
    path.write_bytes(len(head).to_bytes(8, "little") + head)


def _content(name: str, content: str) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        (place / name).write_text(content)

    return change


def _torch_saved(place: Path) -> None:
    torch.save({"a": torch.ones(1)}, place / "adapter_model.safetensors")


def _inner(place: Path) -> None:
    _two(place)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (place / name).unlink()


def _nan(tensors: dict[str, Tensor]) -> None:
    tensors[QUERY] = torch.full((4, 32), torch.nan)


def _another_name(tensors: dict[str, Tensor]) -> None:
    tensors[QUERY.replace("lora_A", "lora_A.second")] = torch.ones(4, 32)


def _without_b(tensors: dict[str, Tensor]) -> None:
    del tensors[next(name for name in tensors if "lora_B" in name)]


def _rank_257(place: Path) -> None:
    def grow(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if ".lora_" in name]:
            tensors[name] = torch.zeros((257, 32) if "lora_A" in name else (32, 257))

    _tensors(grow)(place)
    _config(r=257)(place)


QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
QUANTISED = """The following `bitsandbytes` quantization config was used during training:
- load_in_4bit: True
"""
REFUSED: list[tuple[Callable[[Path], None], str]] = [
    (_config(use_dora=True), "use_dora"),
    (_config(bias="all"), "bias 'all'"),
    (_config(bias="lora_only"), "bias 'lora_only', which trains biases of the base model"),
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
    (_config(target_modules=None), "target_modules is None; expected names of modules"),
    (_config(target_modules=[]), "target_modules is []; expected names of modules"),
    (_config(target_modules="("), "target_modules has '('"),
    (_config(target_modules=".*query", layers_to_transform=[0]), "layers_to_transform is there"),
    (_config(target_modules="all-linear"), "no LoRA at"),
    (_config(rank_pattern={"query": "4"}), "rank_pattern.query is '4'; expected a valid integer"),
    (_config(lora_alpha=float("nan")), "lora_alpha is nan; expected a finite number"),
    (_config(lora_alpha=1e9), "scale is 250000000.0; expected less than or equal to 1024"),
    (_config(lora_bias=True), "lora_bias True, which adds a bias to B"),
    (_config(init_lora_weights="pissa"), "'pissa', which changes the base model's own weights"),
    *(
        (_config(init_lora_weights=start), f"{start!r}, which changes the base model's own weights")
        for start in ("pissa_niter_16", "loftq", "olora", "corda", "lora_ga")
    ),
    (_config(r=257), "LoRA at 'encoder.layer.0.attention.self.query' has an A of rank 4"),
    (_config(layers_to_transform=[0]), "which adapter_config.json does not name in target_modules"),
    (_config(use_qalora=True), "use_qalora True, which is for a quantised base model"),
    (_config(trainable_token_indices=[1]), "trainable_token_indices [1], which trains embeddings"),
    (_config(base_model_name_or_path="/none"), "backbone '/none' is no folder"),
    (_content("README.md", QUANTISED), "quantised during training (load_in_4bit: True)"),
    (_content("adapter_config.json", "{"), "adapter_config.json is not JSON"),
    (_content("adapter_config.json", "[]"), "adapter_config.json is a JSON list"),
    (_content("adapter_model.safetensors", "version https://git-lfs"), "a Git LFS pointer"),
    (_torch_saved, "adapter_model.safetensors is a pickle or an archive of one"),
    (_inner, "holds its adapter in 'other'; expected that folder"),
    (_tensors(_nan), "lora.query.a holds NaN"),
    (_tensors(_another_name), "holds adapters by names ('second'); expected the one"),
    (_plus("bert.embeddings.word_embeddings.weight", 3, 32), "it was fine-tuned, or is another's"),
    (_plus("bert.encoder.layer.0.output.dense.bias", 32), "it was fine-tuned, or is another's"),
    (_plus("score.weight", 3, 32), "the tensor 'score.weight' is not understood"),
    (_config(lora_alpha=5e-324), "lora_alpha is 5e-324; expected greater"),
    (_config(r=10**400), "of rank 4; expected 1000"),
    (_config(revision="x" * 1025), "revision is 'xxx"),
    (_config(exclude_modules=["a"] * 1001), "exclude_modules has 1001 entries; expected at most"),
    (_config(rank_pattern={str(i): 4 for i in range(1001)}), "rank_pattern has 1001 entries"),
    (_config(layers_to_transform=[0] * 1001), "layers_to_transform has 1001 entries"),
    (_config(target_modules="(" * 5000 + ")" * 5000), "; expected a regular expression"),
    (_config(target_modules="a{99999999999999999999}"), "; expected a regular expression"),
    (_config(rank_pattern={"(?i)query": 4}), "a regular expression that cannot be used: global"),
    (_content("adapter_config.json", '{"a":' * 100_000), "adapter_config.json is not JSON"),
    (
        _content("adapter_config.json", f'{{"a": "{"x" * (1 << 20)}"}}'),
        "has more than 1048576 bytes",
    ),
    (_content("config.json", "[" * 100_000), "config.json is not JSON"),
    (
        _content("README.md", f"{QUANTISED.partition('- ')[0]}- quant_method: \x1b[2Jx"),
        r"quant_method: \x1b[2Jx",
    ),
    (_many, "adapter_model.safetensors has a header of 7888891 bytes; expected at most 4194304"),
    (
        _tensors(lambda tensors: tensors.update({str(i): torch.empty(0) for i in range(10_000)})),
        "adapter_model.safetensors holds 10006 tensors; expected at most 10000",
    ),
    (_rank_257, "LoRA of query has rank 257; expected at most 256"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_refused(
    tmp_path: Path,
    bert_folder: Path,
    change: Callable[[Path], None],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What an adapter file cannot say, or a folder does not hold, is refused by name; nothing is
    written."""
    monkeypatch.chdir(tmp_path)  # whose name has the case's own, and is not to be in the message
    written(bert_folder, Path("peft"), target_modules=["query"])
    change(Path("peft"))
    result = convert(Path("peft"), Path("t.safetensors"))
    assert_refused(result, message)
    assert not Path("t.safetensors").exists()


SLOW = [
    {"target_modules": "(.*)*(.*)*x|.*query"},
    {"target_modules": ["query"], "exclude_modules": ".*" * 30 + "x"},
    {"target_modules": ["query"], "rank_pattern": {"(a|q|u|e|r|y|qu|er|.)*x": 4}},
    {"target_modules": ["query"], "alpha_pattern": {"query": 3, "(.*)*(.*)*x": 4}},
    {"layers_to_transform": [0], "layers_pattern": ["layer", "(.*)*(.*)*x"]},
]


@pytest.mark.parametrize("form", SLOW)
def test_expressions_that_take_for_ever(
    tmp_path: Path, bert_folder: Path, form: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A regular expression that would be matched for years is given up after a while, and named."""
    monkeypatch.setattr(peft_modules, "SECONDS", 1.0)
    written(bert_folder, tmp_path / "peft", target_modules=["query"])
    _config(**form)(tmp_path / "peft")
    result = convert(tmp_path / "peft", tmp_path / "t.safetensors")
    assert_refused(result, "which takes too long to match; expected names of modules")
    assert not (tmp_path / "t.safetensors").exists()


def test_a_folder_gives_no_path_away(tmp_path: Path, bert_folder: Path) -> None:
    """Of a base model's path the last part alone gets into the file, and into an exported
    folder."""
    written(bert_folder, tmp_path / "peft", target_modules=["query"])
    hub, unix, windows = "org/tickets-bert", "/home/alice/bert/", "C:\\Users\\alice\\bert"
    for said in (hub, unix, windows):
        _config(base_model_name_or_path=said)(tmp_path / "peft")
        out = tmp_path / "t.safetensors"
        result = convert(tmp_path / "peft", out, "--backbone", str(bert_folder))
        assert result.exit_code == 0, result.output
        assert b"alice" not in out.read_bytes()
        assert str(bert_folder.parent).encode() not in out.read_bytes()
        spec = load(out).spec
        assert spec.backbone.name == f"./{bert_folder.name}"
        found = spec.training["base_model_name_or_path"]
        assert found == (hub if said == hub else "./bert")


def test_names_of_labels_that_are_no_numbers(tmp_path: Path, bert_folder: Path) -> None:
    """Labels under keys that are no numbers of rows are not taken for names."""
    written(bert_folder, tmp_path / "peft", target_modules=["query"])
    for key in ("9" * 5000, "\u0663", "-1"):
        model = json.dumps({"id2label": {"0": "a", "1": "b", key: "c"}})
        (tmp_path / "peft" / "config.json").write_text(model)
        result = convert(tmp_path / "peft", tmp_path / "t.safetensors", labels=None)
        assert_refused(result, "the file does not name the 3 rows of its head")

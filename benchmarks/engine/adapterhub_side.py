"""AdapterHub's side of benchmarks/engine/adapterhub_parity.py: run by the interpreter of a virtual
environment that has its `adapters`, with this repository off its path (`python -I
adapterhub_side.py PLAN ANSWERS`).

PLAN is JSON: `save` are adapters to make with random weights and save, `load` folders to load;
ANSWERS get their logits.
"""

import json
import logging
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForSequenceClassification

import adapters
from adapters import AutoAdapterModel, BnConfig


def main(plan: Path, answers: Path) -> None:
    # it warns while an adapter is added, which is not active yet
    logging.getLogger("adapters").setLevel(logging.ERROR)
    asked = json.loads(plan.read_text())
    torch.manual_seed(0)
    result = {
        "versions": {
            "adapters": adapters.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
        "save": [save(**case) for case in asked["save"]],
        "load": [load(**case) for case in asked["load"]],
    }
    answers.write_text(json.dumps(result))


def save(backbone: str, folder: str, config: dict | str, head: dict, rows: list) -> list:
    if head.get("static"):
        model = AutoModelForSequenceClassification.from_pretrained(
            backbone, num_labels=head["num_labels"]
        )
        adapters.init(model)
    else:
        model = AutoAdapterModel.from_pretrained(backbone)
    model.add_adapter("t", config=config if isinstance(config, str) else BnConfig(**config))
    if not head.get("static"):
        model.add_classification_head("t", **head)
    model.set_active_adapters("t")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".adapters.t." in name or name.startswith(("heads.", "classifier.")):
                parameter.normal_(0, 1 / parameter.shape[-1] ** 0.5)
    model.save_adapter(folder, "t")
    return logits(model, rows)


def load(backbone: str, folder: str, rows: list) -> list:
    model = AutoAdapterModel.from_pretrained(backbone)
    model.load_adapter(folder, set_active=True)
    return logits(model, rows)


def logits(model: torch.nn.Module, rows: list) -> list:
    model.eval()
    with torch.no_grad():
        return [
            model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types]))
            .logits[0]
            .tolist()
            for ids, types in rows
        ]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

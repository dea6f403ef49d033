"""The embedded backbone in float16, a folder of 45 MB: to be carried to a machine that reaches no
package index.

    python -m benchmarks.gpu.half FOLDER
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

from adapters import backbone as backbones


def main(folder: Path) -> None:
    backbone = backbones.load(backbones.EMBEDDED, torch.float16)
    backbone.encoder.save_pretrained(folder)
    for file in Path(backbones.location(backbones.EMBEDDED)).glob("*token*.json"):
        shutil.copy(file, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

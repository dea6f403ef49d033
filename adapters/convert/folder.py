"""Write a folder for another library, completely or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write these files into `folder`, which must be absent or empty. Raises OSError."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tmp-") as temporary:
        whole = Path(temporary) / "whole"
        whole.mkdir()
        for name, content in files.items():
            (whole / name).write_bytes(content)
        whole.replace(folder)

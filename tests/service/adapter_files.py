"""What schemathesis uploads: real adapter files, out of the folder that ADAPTER_FILES names, and
random bytes."""

from __future__ import annotations

import os
from pathlib import Path

import schemathesis
from hypothesis import strategies as st

FILES = [path.read_bytes() for path in sorted(Path(os.environ["ADAPTER_FILES"]).iterdir())]

schemathesis.openapi.format("binary", st.one_of(st.sampled_from(FILES), st.binary()))

"""The three doors, as a person or a shell meets them: help that teaches, quick, at 80 columns, and
completion."""

from __future__ import annotations

import importlib
import os
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

SCRIPTS: dict[str, str] = tomllib.loads(
    (Path(__file__).parent.parent / "pyproject.toml").read_text()
)["project"]["scripts"]
COMMANDS = [
    ("adamix-train",),
    ("adamix-serve",),
    ("adamix",),
    ("adamix-train", "evaluate"),
    ("adamix-train", "compare"),
    ("adamix-train", "calibrate"),
    ("adamix-serve", "predict"),
    *(("adamix", command) for command in ("inspect", "validate", "push", "convert", "export")),
]


def door(script: str) -> typer.Typer:
    module, _, name = SCRIPTS[script].partition(":")
    app = getattr(importlib.import_module(module), name)
    assert isinstance(app, typer.Typer)
    return app


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help(command: tuple[str, ...]) -> None:
    """At 80 columns the help has its examples as they are typed, whole names of options, and no
    line that is too long."""
    script, *rest = command
    app = door(script)
    shown = (
        CliRunner()
        .invoke(app, [*rest, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
        .stdout
    )
    assert max(map(len, shown.splitlines())) <= 80
    examples = re.findall(r"^  (?:ADAMIX_\S+ )?(?:python -m|accelerate) .*$", shown, re.MULTILINE)
    assert examples
    assert not re.findall(r"--[\w-]+…", shown)


def test_the_main_help_has_exit_codes() -> None:
    """Each door says what its exit codes mean."""
    for script in SCRIPTS:
        assert "Exit codes:" in CliRunner().invoke(door(script), ["--help"]).stdout


def test_help_does_not_wait() -> None:
    """Neither torch nor transformers is imported for help or completion."""
    modules = [target.partition(":")[0] for target in SCRIPTS.values()]
    script = (
        f"import sys, {', '.join(modules)}; sys.exit(bool({{'torch', 'transformers'}} &"
        " set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("adamix ins", "inspect"),
        ("adamix-train --check", "--checkpoint-every"),
        ("adamix-train --method lo", "lora"),
    ],
)
def test_completion(typed: str, offered: str) -> None:
    """What a shell asks an installed command to complete is completed: commands, options,
    choices."""
    script, *words = typed.split()
    run = f"from {SCRIPTS[script].replace(':', ' import ')}; app(prog_name={script!r})"
    asked = {
        f"_{script.upper().replace('-', '_')}_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        [sys.executable, "-c", run],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == [offered], done.stderr


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """A service that cannot have its address says so and ends with exit code 2."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [
            sys.executable,
            "-m",
            "service",
            "--port",
            str(taken.getsockname()[1]),
            "--store",
            str(tmp_path / "store"),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False
        )
    assert done.returncode == 2
    assert "address already in use" in done.stderr
    assert "Traceback" not in done.stderr

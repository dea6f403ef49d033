"""The locks, and the commands that write and use them, without a network: pip's and Docker's part
is played by wheels, and by a script, that each test makes."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from adapters.backbone import EMBEDDED_REQUIREMENT

ROOT = Path(__file__).parent.parent
LOCKS = ROOT / "locks"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN = ("ray", "onnxruntime", "openvino")  # installed into environments of their own
NAMES = ("torch", "torch-cpu", "service", "development", *OWN)
DIGEST, NEWER = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"


def entries(name: str) -> dict[str, str]:
    """A lock's entries by the package's name."""
    lines = (LOCKS / f"{name}.txt").read_text().replace("\\\n", "").splitlines()
    return {re.split("==", line)[0]: line for line in lines if not line.startswith("#")}


def normal(requirement: str) -> str:
    """The name in a requirement, as an index spells it."""
    return re.sub("[-_.]+", "-", re.split(r"[\[<>=;~ ]", requirement)[0]).lower()


@pytest.mark.parametrize("name", NAMES)
def test_each_entry_is_one_version_with_its_digests(name: str) -> None:
    """Every entry pins one version by the sha256 of its files, and no lock names an index."""
    for entry in entries(name).values():
        assert re.fullmatch(r"[a-z0-9-]+==[^ ;]+( ; [^-]*?)?( +--hash=sha256:[0-9a-f]{64})+", entry)
    assert "://" not in (LOCKS / f"{name}.txt").read_text()


def test_the_locks_hold_what_the_project_asks_for() -> None:
    """Serving's dependencies, the extras' and the backbone's package are all locked, and nothing
    is locked twice for a system."""
    service = {"torch", *entries("service")}
    extra = PROJECT["optional-dependencies"]
    served = [*PROJECT["dependencies"], *extra["tracing"], *extra["bucket"]]
    assert {normal(one) for one in (*served, EMBEDDED_REQUIREMENT, "setuptools")} <= service
    of_ray = {normal(one) for one in extra["ray"]}
    extras = [one for name in extra.keys() - {"ray"} for one in extra[name]]
    assert {normal(one) for one in extras} <= service | entries("development").keys()
    assert of_ray <= service | entries("ray").keys()
    assert not installed("service") & (installed("development") | installed("ray"))
    assert not entries("service").keys() & entries("torch").keys()


@pytest.mark.parametrize("name", OWN)
def test_what_has_an_environment_of_its_own_is_in_no_other_lock(name: str) -> None:
    """Ray and the runtimes of benchmarks are locked for environments of their own alone, at
    versions that other locks have as well."""
    others, own = {**entries("service"), **entries("development")}, entries(name)
    assert name in own.keys() - others.keys()
    both = others.keys() & own.keys()
    assert both
    assert all(others[one].split(" ")[0] == own[one].split(" ")[0] for one in both)


def test_the_extra_for_training_is_what_training_imports() -> None:
    """The extra for training brings nothing that training does not import, and no package imports
    what only tests and benchmarks are to have."""
    distributions = metadata.packages_distributions()

    def imported(package: str) -> set[str]:
        trees = (ast.parse(path.read_text()) for path in (ROOT / package).rglob("*.py"))
        nodes = [node for tree in trees for node in ast.walk(tree)]
        names = [one.name for node in nodes if isinstance(node, ast.Import) for one in node.names]
        names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
        modules = {name.partition(".")[0] for name in names}
        return {normal(one) for module in modules for one in distributions.get(module, ())}

    extras = {
        extra: {normal(one) for one in wanted}
        for extra, wanted in PROJECT["optional-dependencies"].items()
    }
    packages = {name: imported(name) for name in ("adapters", "service", "training")}
    assert extras["train"] <= packages["training"] | {"tensorboard"}  # by torch's name for it
    of_tests = (extras["dev"] | extras["bench"]) - {"triton"}  # torch's CUDA build brings it
    assert "peft" in of_tests
    assert not of_tests & set().union(*packages.values())


def installed(name: str) -> set[str]:
    """The names of what a lock installs on this system."""
    found = {one: Requirement(entry.split(" --hash")[0]) for one, entry in entries(name).items()}
    return {one for one, asked in found.items() if not asked.marker or asked.marker.evaluate()}


def test_what_a_locked_package_needs_is_locked() -> None:
    """A package of the locks needs nothing on this system that no lock installs there: also not
    what serving needs on other systems alone."""
    here = installed("service") | installed("development")
    locked = here | {"torch", "sentence-transformers", "pip"}  # the two as locks/write.py says
    for name in here:
        for text in metadata.requires(name) or []:
            asked = Requirement(text)
            if not asked.marker or asked.marker.evaluate({"extra": ""}):
                assert normal(asked.name) in locked, f"{name} needs {text}"


def test_the_constraints_are_the_locks_versions() -> None:
    """constraints.txt has each locked package at its locked version."""
    pinned = dict(
        line.split(" ")[0].split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    locked = {
        name: re.split("[= ]+", entry)[1]
        for lock in ("torch", "service", "development")
        for name, entry in entries(lock).items()
    }
    assert pinned == locked
    (cpu,) = entries("torch-cpu").values()
    assert cpu.startswith(f"torch=={pinned['torch']}+cpu ")


def wheel(folder: Path, name: str, version: str) -> str:
    """Make a package that holds nothing; the entry that locks it."""
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{name}=={version} --hash=sha256:{digest}\n"


def install(folder: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run the installer on the locks in `folder`; what it said, and what is there then."""
    shutil.copy(LOCKS / "install.sh", folder)
    target = folder / "target"
    surroundings = {
        name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "TORCH_"))
    }
    surroundings |= {
        "PIP": str(Path(sys.executable).with_name("pip")),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
        "PIP_TARGET": str(target),
        **environment,
    }
    done = subprocess.run(
        ["sh", folder / "install.sh", "service"],
        env=surroundings,
        capture_output=True,
        text=True,
        check=False,
    )
    return done, sorted(path.stem for path in target.glob("*.dist-info"))


@pytest.fixture
def locked(tmp_path: Path) -> Path:
    """A folder of wheels and the locks of them."""
    for name, version in (("torch", "1.0+cpu"), ("torch", "1.0"), ("other", "2.0")):
        lock = {"1.0+cpu": "torch-cpu", "1.0": "torch", "2.0": "service"}[version]
        (tmp_path / f"{lock}.txt").write_text(wheel(tmp_path, name, version))
    return tmp_path


def test_the_cpu_build_is_preferred(locked: Path) -> None:
    """The installer takes torch's CPU build where pip finds it, and what the named lock has."""
    done, there = install(locked)
    assert done.returncode == 0, done.stderr
    assert there == ["other-2.0", "torch-1.0+cpu"]


def test_without_a_cpu_build_the_default_one_is_taken(locked: Path) -> None:
    """Where pip finds no CPU build, the installer says so and takes the default one; asked for
    CUDA's, it takes that without a word."""
    (locked / "torch-1.0+cpu-py3-none-any.whl").unlink()
    done, there = install(locked)
    assert done.returncode == 0, done.stderr
    assert "taking the default build" in done.stderr
    assert there == ["other-2.0", "torch-1.0"]
    shutil.rmtree(locked / "target")
    done, there = install(locked, TORCH_BUILD="cuda")
    assert (done.returncode, done.stderr, there) == (0, "", ["other-2.0", "torch-1.0"])


def test_an_index_that_was_named_must_have_the_build(locked: Path) -> None:
    """With TORCH_INDEX_URL set, a CPU build that is not found ends the installation."""
    (locked / "torch-1.0+cpu-py3-none-any.whl").unlink()
    done, there = install(locked, TORCH_INDEX_URL=f"file://{locked}")
    assert done.returncode != 0
    assert "torch==1.0+cpu" in done.stderr
    assert not there


@pytest.mark.parametrize("lock", ["service", "torch"])
def test_another_file_than_the_locked_one_is_refused(locked: Path, lock: str) -> None:
    """A wheel of the locked name and version whose bytes are others is not installed."""
    name = {"service": "other-2.0", "torch": "torch-1.0"}[lock]
    with zipfile.ZipFile(locked / f"{name}-py3-none-any.whl", "a") as archive:
        archive.writestr("injected.py", "")
    done, there = install(locked, TORCH_BUILD="cuda")
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert name not in there


def test_an_unknown_build_is_refused(locked: Path) -> None:
    """A TORCH_BUILD that is neither cpu nor cuda is named, and nothing is installed."""
    done, there = install(locked, TORCH_BUILD="rocm")
    assert done.returncode == 2
    assert done.stderr == "TORCH_BUILD is 'rocm'; expected cpu or cuda\n"
    assert not there


def audited(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run the audit with a pip-audit of our own: `answer` in its script is what it writes."""
    (folder / "pip_audit.py").write_text(
        "import json, sys, pathlib\n"
        "arguments = dict(zip(sys.argv, sys.argv[1:]))\n"
        "asked = pathlib.Path(arguments['--requirement']).read_text()\n"
        f"{script}\n"
        "pathlib.Path(arguments['--output']).write_text(json.dumps({'dependencies': answer}))\n"
    )
    path = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", "locks.audit"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_an_index_of_advisories_nothing_fails(tmp_path: Path) -> None:
    """An index that does not know a package that everybody has, or does not answer, is none: that
    is said, and the exit code is 0."""
    for script in ("sys.exit(1)", "answer = [{'name': 'setuptools', 'skip_reason': 'not found'}]"):
        done = audited(tmp_path, script)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == (
            "audit: no index of advisories can be reached; nothing was looked up\n"
        )


def test_a_vulnerability_is_named(tmp_path: Path) -> None:
    """A known vulnerability of a locked version is named with what mends it, and the exit code is
    1; without one it is 0."""
    answer = [{"name": "a", "version": "1", "vulns": []}]
    done = audited(tmp_path, f"answer = {answer}")
    assert (done.returncode, done.stdout) == (0, "audit: no known vulnerability in 1 packages\n")
    answer[0]["vulns"] = [{"id": "PYSEC-1", "aliases": [], "fix_versions": ["2", "3"]}]
    done = audited(tmp_path, f"answer = {answer}\nassert 'setuptools==' in asked")
    assert (done.returncode, done.stdout) == (1, "audit: a 1 has PYSEC-1, mended in 2, 3\n")


def pinned(folder: Path, docker: str) -> subprocess.CompletedProcess[str]:
    """Run deploy/pin.sh on a copy, with a docker of our own."""
    (folder / "deploy").mkdir(exist_ok=True)
    shutil.copy(ROOT / "deploy/pin.sh", folder / "deploy")
    program = folder / "bin/docker"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{docker}\n")
    program.chmod(0o755)
    return subprocess.run(
        ["sh", folder / "deploy/pin.sh"],
        env={**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_digests_are_pinned_once_all_are_known(tmp_path: Path) -> None:
    """`make pin` puts each base image's digest behind its tag, renews it the next time, and changes
    nothing where one of them cannot be had."""
    files = [tmp_path / "Dockerfile", tmp_path / "compose.yaml"]
    for file in files:
        text = re.sub(r"@sha256:\w+", "", (ROOT / file.name).read_text())
        file.write_text(text)
    before = [file.read_text() for file in files]
    for docker in ("exit 1", "echo latest", f"case $6 in grafana*) exit 1; esac; echo {DIGEST}"):
        done = pinned(tmp_path, docker)
        assert (done.returncode, [file.read_text() for file in files]) == (1, before)
        assert done.stderr.endswith("nothing was changed\n")
    for digest in (DIGEST, NEWER):
        done = pinned(tmp_path, f"echo {digest}")
        assert done.returncode == 0, done.stderr
        after = [file.read_text() for file in files]
        assert re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", after[0], re.M) == [
            f"python:3.11-slim@{digest}"
        ]
        images = re.findall(r"^    image: (\S+:\S+)$", after[1], re.M)
        assert len(images) == 4
        assert {image.partition("@")[2] for image in images} == {digest}
        undone = [text.replace(f"@{digest}", "") for text in after]
        assert undone == before


def test_every_base_image_can_be_pinned() -> None:
    """The Dockerfile's stages and compose's services take no image but those that `make pin`
    knows and our own."""
    stages = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.M)
    assert stages == ["${PYTHON_IMAGE}"] * 2
    images = re.findall(r"^ *image: (\S+)", (ROOT / "compose.yaml").read_text(), re.M)
    assert {image for image in images if ":" not in image} == {"adamix-serve"}


def test_the_sbom_holds_each_package_with_its_digests(tmp_path: Path) -> None:
    """`make sbom` writes a valid CycloneDX file with every package of serving's locks, its version
    and its files' sha256."""
    tool = Path(sys.executable).with_name("cyclonedx-py")
    if not tool.exists():
        pytest.skip("cyclonedx-py is not installed: pip install -c constraints.txt -e '.[supply]'")
    (command,) = re.findall(r"^\t@(cat locks/(?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(), re.M)
    command = re.sub(r"\$\(if .*?,torch,torch-cpu\)", "torch-cpu", command)
    command = command.replace("$(BIN)/cyclonedx-py", str(tool))
    command = command.replace("build/sbom", f"{tmp_path}/sbom")
    subprocess.run(["bash", "-c", command], cwd=ROOT, check=True, capture_output=True)
    components = json.loads((tmp_path / "sbom.cdx.json").read_text())["components"]
    locked = {**entries("torch-cpu"), **entries("service")}
    assert {one["name"] for one in components} == locked.keys()
    for one in components:
        digests = {
            digest["content"]
            for reference in one["externalReferences"]
            for digest in reference.get("hashes", [])
        }
        assert digests == set(re.findall("sha256:([0-9a-f]+)", locked[one["name"]]))

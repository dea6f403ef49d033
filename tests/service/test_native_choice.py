"""Which kernels compute: what is asked for, what is there, what is right and what is fast."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.backbone import Backbone
from service.app import create_app
from service.engine import quantized
from service.engine.engine import Engine
from service.engine.native import choice
from service.engine.native import library as native_library
from service.engine.native.choice import choose
from service.engine.native.library import INTERFACE, Library, NativeError, kinds, load, load_kind
from service.engine.slots import Slots
from service.settings import InvalidSettings, Settings
from tests import forks

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def anew() -> Iterator[None]:
    """What was loaded and measured before does not count, and nor does it after the test."""
    load_kind.cache_clear()
    choice._measured.cache_clear()
    yield
    load_kind.cache_clear()
    choice._measured.cache_clear()


@pytest.fixture
def unbuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiler was there when the package was installed."""
    monkeypatch.setattr(native_library, "find_spec", lambda _name: None)


def measured(monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
    """torch's products take so many times as long as the native ones."""
    seconds = {True: 1.0, False: ratio}
    monkeypatch.setattr(
        choice, "_seconds", lambda layer, _x: seconds[isinstance(layer, choice.Native)]
    )


def test_the_kernels_are_built() -> None:
    """Where there is a C++ compiler, this installation has the kernels for its processor."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    assert load().kind == kinds()[0]
    for kind in kinds():
        assert load_kind(kind).kind == kind


def test_torch() -> None:
    """torch's operators compute where they are asked for."""
    assert choose("torch", CPU, torch.float32) == (None, "asked for")


def test_native(library: Library) -> None:
    """The native kernels compute where they are asked for, whatever they take."""
    assert choose("native", CPU, torch.float32) == (library, "asked for")


@pytest.mark.parametrize(
    ("device", "dtype", "said"),
    [
        ("cuda", torch.float32, "native kernels are for the CPU; the device is 'cuda'"),
        ("cpu", torch.bfloat16, "native kernels are for float32 and int8; the dtype is "),
    ],
)
def test_what_they_are_not_for(device: str, dtype: torch.dtype, said: str) -> None:
    """On a GPU and in half precision torch computes; the native kernels are refused there."""
    found = choose("auto", torch.device(device), dtype)
    assert found.library is None
    assert found.reason.startswith(said)
    with pytest.raises(NativeError, match=f"^{said}"):
        choose("native", torch.device(device), dtype)


@pytest.mark.usefixtures("anew", "unbuilt")
def test_not_built() -> None:
    """Where they were not built torch computes, with the reason; they cannot be asked for."""
    found = choose("auto", CPU, torch.float32)
    assert found.library is None
    said = (
        f"the native kernels (service.engine.native.{kinds()[0]}) were not built; expected a C++"
        " compiler when this package was installed"
    )
    assert found.reason == said
    with pytest.raises(NativeError) as refusal:
        choose("native", CPU, torch.float32)
    assert str(refusal.value) == said


@pytest.mark.usefixtures("anew", "unbuilt")
def test_an_engine_without_them(bert: Backbone) -> None:
    """An engine that may choose has torch's operators where nothing was built."""
    assert Engine(bert, Slots(1, CPU, torch.float32), CPU, torch.float32).encoder.native is None


@pytest.mark.usefixtures("anew", "unbuilt")
def test_int8_with_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """int8 is refused where neither the native kernels nor torch can compute it."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64"})
    with pytest.raises(InvalidSettings, match=r"ADAMIX_DTYPE is 'int8', but this processor"):
        create_app(Settings(dtype="int8", device="cpu", store=tmp_path))


@pytest.mark.usefixtures("anew")
def test_an_unknown_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """An x86 processor without AVX2 has torch's operators."""
    monkeypatch.setattr(native_library.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    found = choose("auto", CPU, torch.float32)
    assert found.library is None
    assert found.reason == "torch finds DEFAULT in this processor; expected AVX2 or AVX512"


@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize(
    ("machine", "found", "has", "expected"),
    [
        ("aarch64", "DEFAULT", [], ["generic"]),
        ("AMD64", "AVX2", [], ["avx2"]),
        ("x86_64", "AVX2", ["avx_vnni"], ["avx2vnni", "avx2"]),
        ("x86_64", "AVX512", [], ["avx512", "avx2"]),
        ("x86_64", "AVX512", ["avx512_vnni"], ["avx512vnni", "avx512", "avx2"]),
    ],
)
def test_kinds_of_processor(
    machine: str, found: str, has: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each processor has the kernels with the instructions that it knows, the fastest first."""
    monkeypatch.setattr(native_library.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: found)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(has, True))
    assert kinds() == expected


@pytest.mark.usefixtures("anew", "library")
@pytest.mark.parametrize(("ratio", "native"), [(0.5, False), (0.84, False), (0.86, True)])
def test_what_is_fast(ratio: float, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The native kernels are left where their products are clearly slower."""
    measured(monkeypatch, ratio)
    found = choose("auto", CPU, torch.float32)
    assert (found.library is not None) == native
    assert found.reason == f"products at {ratio:.2f} times the speed of torch's"


@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize("wrong", [0.01, torch.nan])
def test_what_is_right(wrong: float, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels whose numbers are not torch's are left, with the reason, however fast they are."""
    measured(monkeypatch, 10.0)
    product = Library.linear

    def spoilt(self: Library, x: Tensor, *others: Any) -> Tensor:
        found = product(self, x, *others)
        found[-1, -1] += wrong
        return found

    monkeypatch.setattr(Library, "linear", spoilt)
    found = choose("auto", CPU, torch.float32)
    assert found.library is None
    assert found.reason.startswith(f"the native kernels ({library.kind}) differ from torch's by ")


@pytest.mark.usefixtures("anew", "library")
def test_the_choice_leaves_no_trace() -> None:
    """Choosing changes neither the number of threads nor torch's random numbers."""
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    choose("auto", CPU, torch.float32)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.usefixtures("anew")
def test_int8_where_torch_has_none(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor without AVX512-VNNI the native kernels compute int8."""
    if not library.has_int8:
        pytest.skip(f"no int8 for this processor ({library.kind})")
    monkeypatch.setattr(quantized, "lacking", lambda _device: "it lacks it")
    monkeypatch.setattr(choice, "lacking", lambda _device: "it lacks it")
    assert choose("auto", CPU, torch.int8).library is not None
    assert choose("native", CPU, torch.int8).library is not None


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The path of a library of some C++."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")

    def build(source: str) -> str:
        folder = tmp_path_factory.mktemp("library")
        (folder / "source.cpp").write_text(source)
        subprocess.run(
            ["c++", "-shared", "-fPIC", "source.cpp", "-o", "library.so"],
            cwd=folder,
            check=True,
        )
        return str(folder / "library.so")

    return build


def test_a_library_of_another_version(compiled: Callable[[str], str]) -> None:
    """Kernels that another version of the package built are refused, with what to do, although
    they lack functions."""
    source = f'extern "C" int adamix_interface() {{ return {INTERFACE + 1}; }}'
    with pytest.raises(NativeError) as refusal:
        Library(compiled(source), "avx2")
    assert str(refusal.value) == (
        f"the native kernels were built from another version: their interface is {INTERFACE + 1};"
        f" expected {INTERFACE}. `pip install --editable .` builds them again"
    )


def test_what_is_no_library(compiled: Callable[[str], str], tmp_path: Path) -> None:
    """A file that is damaged or another's is refused in a sentence."""
    (tmp_path / "damaged.so").write_bytes(b"\x7fELF and then nothing")
    for path in (str(tmp_path / "damaged.so"), compiled("int others;")):
        with pytest.raises(NativeError, match=r"^the native kernels could not be loaded: .*"):
            Library(path, "avx2")


def test_installing_without_a_compiler(tmp_path: Path) -> None:
    """An installation whose compiler fails succeeds, and has no kernels."""
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", "lib", "--build-temp", "temp"],
        cwd=_sources(tmp_path),
        env={**os.environ, "CC": "false", "CXX": "false"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".so", ".o", ".pyd")]


def _sources(folder: Path) -> Path:
    """What setup.py reads, in a folder of its own."""
    native = Path("service/engine/native")
    (folder / native).mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", native / "kernels.cpp"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def test_a_server_that_is_refused_them(tmp_path: Path) -> None:
    """A server that is told to use them in half precision ends with one sentence that names the
    setting, and exit code 2."""
    given = {"KERNELS": "native", "DTYPE": "bfloat16", "DEVICE": "cpu", "PORT": "0"}
    settings = {f"ADAMIX_{name}": each for name, each in given.items()}
    settings["ADAMIX_STORE"] = str(tmp_path / "store")
    done = forks.run(["service"], {**os.environ, **settings})
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "setting ADAMIX_KERNELS is 'native', but native kernels are for float32 and int8" in line

"""The native kernels, compiled where there is a C++ compiler; without one the engine computes by
torch's operators. All else about the package is in pyproject.toml."""

import platform

from setuptools import Extension, setup

FOLDER = "service/engine/native"
X86 = platform.machine().lower() in ("x86_64", "amd64")

# Plain libraries, which service/engine/native/library.py loads for the processor that it finds: the
# one that compiles may be another.
KINDS = {"generic": []}
if X86:
    KINDS = {
        "avx2": ["-march=x86-64-v3"],
        "avx2vnni": ["-march=x86-64-v3", "-mavxvnni"],
        "avx512": ["-march=x86-64-v4"],
        "avx512vnni": ["-march=x86-64-v4", "-mavx512vnni"],
    }

setup(
    ext_modules=[
        Extension(
            f"{FOLDER.replace('/', '.')}.{kind}",
            [f"{FOLDER}/kernels.cpp"],
            language="c++",
            extra_compile_args=[
                "-std=c++20",
                "-O3",
                "-g0",
                "-fno-math-errno",
                "-ffp-contract=fast",
                "-fvisibility=hidden",
                "-Wno-maybe-uninitialized",  # GCC's own headers of AVX-512
                *flags,
            ],
            optional=True,
        )
        for kind, flags in KINDS.items()
    ]
)

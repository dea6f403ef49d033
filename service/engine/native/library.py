"""The library of native kernels (`kernels.cpp`), as functions of tensors.

It is loaded with ctypes, which needs no header and no version of torch, and gives up Python's lock
during a call. Its kernels run in threads of its own: as many as torch is told to use.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Mapping, Sequence
from ctypes import c_float, c_int32, c_int64, c_void_p
from functools import lru_cache
from importlib.util import find_spec
from struct import Struct
from typing import Any

import torch
from torch import Tensor

from service.engine.packed import Packed
from service.engine.resident import Pair

INTERFACE = 2  # of kernels.cpp, `adamix_interface`
ACTIVATIONS = {"none": 0, "gelu": 1, "relu": 2}  # of kernels.cpp, by `Activation.fused`

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "adamix_packed": (c_int64, [c_int64] * 2),
    "adamix_pack": (None, [c_void_p] * 2 + [c_int64] * 2 + [c_void_p]),
    "adamix_linear": (
        None,
        [c_void_p, *[c_int64] * 4, c_void_p, c_void_p, c_int64, c_int32, c_int32],
    ),
    "adamix_int8_inputs": (c_int32, []),
    "adamix_activate": (None, [c_void_p, c_int64, c_int32, c_int32]),
    "adamix_dots": (None, [c_void_p, *[c_int64] * 4, *[c_void_p] * 3]),
    "adamix_add_norm": (
        None,
        [*[c_void_p] * 4, *[c_int64] * 2, c_float, c_void_p, c_int32],
    ),
    "adamix_attention": (
        None,
        [c_void_p, c_void_p, *[c_int64] * 4, c_float, c_void_p, c_int32],
    ),
    "adamix_embed": (
        None,
        [*[c_void_p] * 8, *[c_int64] * 2, c_float, c_void_p, c_int32],
    ),
    "adamix_adapt": (
        None,
        [c_void_p, *[c_int64] * 2, c_void_p, c_int64, c_void_p, *[c_int64] * 3, c_int32],
    ),
}

_INT8_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "adamix_int8_block": (c_int64, []),
    "adamix_packed_int8": (c_int64, [c_int64] * 2),
    "adamix_pack_int8": (None, [c_void_p] * 4 + [c_int64] * 2 + [c_void_p]),
    "adamix_linear_int8": _SIGNATURES["adamix_linear"],
}

# kernels.cpp, `Part`: the addresses of down, its bias, up and its bias; rank, first layer, first
# token, the token behind the last one; scale, activation
PART = Struct("<4Q4qfi")


class NativeError(Exception):
    """There are no native kernels for this machine; the message says what is lacking."""


class Library:
    """The kernels. All tensors are float32 on the CPU, unless it says otherwise; a row's numbers
    follow each other."""

    def __init__(self, path: str, kind: str) -> None:
        """`kind` of processor. Raises NativeError for a file that is not this version's library."""
        self.kind = kind
        try:
            self._functions = ctypes.CDLL(path)
            found = self._functions.adamix_interface()  # first: others have other functions
            if found != INTERFACE:
                raise NativeError(
                    f"the native kernels were built from another version: their interface is"
                    f" {found}; expected {INTERFACE}. `pip install --editable .` builds them again"
                )
            self._declare(_SIGNATURES)
            # to how many bits inputs are rounded for int8 weights; 0: there are no kernels for them
            self.int8_inputs: int = self._functions.adamix_int8_inputs()
            self.int8_block = 0  # how many inputs share their scales
            if self.has_int8:
                self._declare(_INT8_SIGNATURES)
                self.int8_block = self._functions.adamix_int8_block()
        except (OSError, AttributeError) as error:
            raise NativeError(f"the native kernels could not be loaded: {error}") from None

    @property
    def has_int8(self) -> bool:
        return self.int8_inputs > 0

    def _declare(self, signatures: Mapping[str, tuple[Any, list[Any]]]) -> None:
        for name, (result, arguments) in signatures.items():
            function = getattr(self._functions, name)
            function.restype, function.argtypes = result, arguments

    def packed(self, weight: Tensor, bias: Tensor) -> Tensor:
        """A linear layer's weight `[outputs, inputs]` and bias `[outputs]` as `linear` takes
        them."""
        outputs, inputs = weight.shape
        weight, bias = weight.contiguous(), bias.contiguous()
        found = torch.empty(self._functions.adamix_packed(inputs, outputs))
        self._functions.adamix_pack(
            weight.data_ptr(), bias.data_ptr(), inputs, outputs, found.data_ptr()
        )
        return found

    def packed_int8(
        self, whole: Tensor, scales: Tensor, bias: Tensor, factors: Tensor | None = None
    ) -> Tensor:
        """The same of an int8 weight `[outputs, inputs]` of -127 to 127, as `linear_int8` takes it.
        Each output has a scale for each block of `int8_block` inputs, `[outputs, blocks]`. Inputs
        are multiplied by `factors`, `[inputs]`."""
        outputs, inputs = whole.shape
        blocks = -(-inputs // self.int8_block)
        assert scales.shape == (outputs, blocks), (
            f"scales are {list(scales.shape)}; expected {[outputs, blocks]}"
        )
        factors = scales.new_ones(inputs) if factors is None else factors.contiguous()
        whole, scales, bias = whole.contiguous(), scales.contiguous(), bias.contiguous()
        size = self._functions.adamix_packed_int8(inputs, outputs)
        found = torch.empty(size, dtype=torch.int8)
        self._functions.adamix_pack_int8(
            whole.data_ptr(),
            scales.data_ptr(),
            bias.data_ptr(),
            factors.data_ptr(),
            inputs,
            outputs,
            found.data_ptr(),
        )
        return found

    def linear(
        self, x: Tensor, packed: Tensor, outputs: int, activation: int, out: Tensor | None = None
    ) -> Tensor:
        """`activation(x·Wᵀ + b)`, `[n, inputs]` → `[n, outputs]`; `activation` is one of
        ACTIVATIONS."""
        return self._product(self._functions.adamix_linear, x, packed, outputs, activation, out)

    def linear_int8(
        self, x: Tensor, packed: Tensor, outputs: int, activation: int, out: Tensor | None = None
    ) -> Tensor:
        """The same with int8 weights. Each row's inputs are rounded, block by block, to whole
        numbers of `int8_inputs` bits: 16-bit ones are symmetric, 8-bit ones reach from the block's
        least input, or 0, to its largest. A block's sums are exact."""
        product = self._functions.adamix_linear_int8
        return self._product(product, x, packed, outputs, activation, out)

    def _product(
        self,
        product: Any,
        x: Tensor,
        packed: Tensor,
        outputs: int,
        activation: int,
        out: Tensor | None,
    ) -> Tensor:
        assert x.stride(1) == 1, "a row's numbers follow each other"
        assert x.dtype == torch.float32, "the kernels read nothing else"
        rows, inputs = x.shape
        if out is None:
            out = x.new_empty(rows, outputs)
        product(
            x.data_ptr(),
            x.stride(0),
            rows,
            inputs,
            outputs,
            packed.data_ptr(),
            out.data_ptr(),
            out.stride(0),
            activation,
            torch.get_num_threads(),
        )
        return out

    def activate(self, activation: int, x: Tensor) -> Tensor:
        """The activation, one of ACTIVATIONS, of each number; it is written to `x`."""
        assert x.is_contiguous(), "it is a product of its own"
        self._functions.adamix_activate(
            x.data_ptr(), x.numel(), activation, torch.get_num_threads()
        )
        return x

    def dots(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """`x·Wᵀ + b` for the few outputs of a head, `[n, inputs]` → `[n, outputs]`."""
        x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
        out = x.new_empty(len(x), len(weight))
        self._functions.adamix_dots(
            x.data_ptr(),
            x.stride(0),
            *x.shape,
            len(weight),
            weight.data_ptr(),
            bias.data_ptr(),
            out.data_ptr(),
        )
        return out

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """LayerNorm of each row of `[n, d]`."""
        x = x.contiguous()
        out = torch.empty_like(x)
        self._functions.adamix_add_norm(
            x.data_ptr(),
            None,
            weight.data_ptr(),
            bias.data_ptr(),
            *x.shape,
            eps,
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out

    def add_norm(self, y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """LayerNorm of each row of x + y, `[n, d]`; it is written to `y`."""
        x, y = x.contiguous(), y.contiguous()
        self._functions.adamix_add_norm(
            x.data_ptr(),
            y.data_ptr(),
            weight.data_ptr(),
            bias.data_ptr(),
            *y.shape,
            eps,
            y.data_ptr(),
            torch.get_num_threads(),
        )
        return y

    def attention(
        self, qkv: Tensor, batch: Packed, heads: int, *, window: int | None = None
    ) -> Tensor:
        """As `service.engine.attention` has it. For tokens that belong to no row it gives 0."""
        qkv = qkv.contiguous()
        width = qkv.shape[1] // 3
        out = qkv.new_empty(qkv.shape[0], width)
        out[batch.tokens :] = 0
        self._functions.adamix_attention(
            qkv.data_ptr(),
            batch.bounds.data_ptr(),
            len(batch.bounds) - 1,
            heads,
            width // heads,
            batch.longest if window is None else window,
            (width // heads) ** -0.5,
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out

    def embed(
        self,
        words: tuple[Tensor, Tensor],
        types: tuple[Tensor, Tensor | None],
        positions: tuple[Tensor, Tensor | None],
        norm: Pair,
        eps: float,
    ) -> Tensor:
        """LayerNorm of the sum of a word's, a type's and a position's embedding, `[T, d]`: each is
        the ids `[T]`, int64, and their table, or None for none. Ids are not checked."""
        ids, table = words
        out = table.new_empty(len(ids), table.shape[1])
        self._functions.adamix_embed(
            ids.data_ptr(),
            None if types[1] is None else types[0].data_ptr(),
            None if positions[1] is None else positions[0].data_ptr(),
            table.data_ptr(),
            None if types[1] is None else types[1].data_ptr(),
            None if positions[1] is None else positions[1].data_ptr(),
            norm[0].data_ptr(),
            norm[1].data_ptr(),
            *out.shape,
            eps,
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out

    def adapt(self, parts: Parts, layer: int, x: Tensor, y: Tensor) -> None:
        """`y += scale · (U·act(D·x + b_D) + b_U)`, each adapter for its own tokens: `[T, inputs]`,
        `[T, outputs]`. `x` may be `y`."""
        assert x.stride(1) == y.stride(1) == 1, "a row's numbers follow each other"
        self._functions.adamix_adapt(
            parts.memory,
            parts.count,
            layer,
            x.data_ptr(),
            x.stride(0),
            y.data_ptr(),
            y.stride(0),
            x.shape[1],
            y.shape[1],
            torch.get_num_threads(),
        )


class Parts:
    """The adapters of a batch at one site, and their tokens."""

    def __init__(self, records: Sequence[bytes]) -> None:
        """Each packed by PART. Keep what their addresses point to alive as long as this."""
        self.count = len(records)
        self.memory = ctypes.create_string_buffer(b"".join(records))


def kinds() -> list[str]:
    """The kinds of processor that this one is, of those that setup.py builds for, the best one
    first. Raises NativeError for an x86 processor that is of none."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ["generic"]
    found, has = torch.backends.cpu.get_cpu_capability(), torch.cpu.get_capabilities()
    if found not in ("AVX2", "AVX512"):
        raise NativeError(f"torch finds {found} in this processor; expected AVX2 or AVX512")
    wide = found == "AVX512"
    there = {
        "avx512vnni": wide and has.get("avx512_vnni"),
        "avx512": wide,
        "avx2vnni": has.get("avx_vnni"),
        "avx2": True,
    }
    return [kind for kind, is_there in there.items() if is_there]


def load() -> Library:
    """The best kernels for this machine. Raises NativeError where there are none."""
    return load_kind(kinds()[0])


@lru_cache(maxsize=4)
def load_kind(kind: str) -> Library:
    """Those for one of `kinds()`."""
    module = f"{__package__}.{kind}"
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise NativeError(
            f"the native kernels ({module}) were not built; expected a C++ compiler when this"
            " package was installed"
        )
    return Library(spec.origin, kind)

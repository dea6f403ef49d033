"""The native kernels against float64: products, activations, norms and embeddings of any size, each
row's numbers its own to the bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from service.engine.native.library import ACTIVATIONS, Library, kinds
from service.engine.native.linear import NativeQuantized, in_blocks
from tests.service.conftest import loaded, threads

INPUTS = (1, 7, 100, 384, 1536)
OUTPUTS = (1, 13, 16, 17, 48, 1152)
ROWS = (1, 2, 5, 6, 7, 12, 13, 47, 95, 97)  # around the heights of tiles and of parts
MOST = 100
FUNCTIONS = {"none": lambda x: x, "gelu": F.gelu, "relu": F.relu}


@pytest.fixture(scope="module", params=["generic", "avx2", "avx2vnni", "avx512", "avx512vnni"])
def library(request: pytest.FixtureRequest) -> Library:
    """The native kernels for each kind of processor that this one is."""
    if request.param not in kinds():
        pytest.skip(f"this processor is not of the kind {request.param}; it is {kinds()}")
    return loaded(request.param)


def test_activations_are_those_of_the_kernels() -> None:
    """The tests know of every activation that the kernels have."""
    assert set(FUNCTIONS) == set(ACTIVATIONS)


def layer_of(inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    return torch.randn(outputs, inputs) / inputs**0.5, torch.randn(outputs)


def strided(rows: int, columns: int) -> Tensor:
    """Random rows with other numbers between them, which no aligned address begins."""
    return torch.randn(rows, columns + 5)[:, 3 : 3 + columns]


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("inputs", INPUTS)
def test_linear(inputs: int, outputs: int, library: Library) -> None:
    """A product has the numbers of float64 but for float32's rounding, with each activation."""
    (weight, bias), x = layer_of(inputs, outputs), strided(MOST, inputs)
    packed = library.packed(weight, bias)
    wanted = F.linear(x.double(), weight.double(), bias.double())
    size = F.linear(x.abs(), weight.abs(), bias.abs())
    for name, function in FUNCTIONS.items():
        found = library.linear(x, packed, outputs, ACTIVATIONS[name])
        assert ((found - function(wanted)).abs() <= 2e-6 * size).all(), name


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("inputs", INPUTS)
def test_a_row_of_a_product_is_its_own(inputs: int, outputs: int, library: Library) -> None:
    """A row of a product is to the bit the same for any number of rows and of threads."""
    x, packed = strided(MOST, inputs), library.packed(*layer_of(inputs, outputs))
    whole = library.linear(x, packed, outputs, ACTIVATIONS["gelu"])
    for number in (1, 2, 3):
        with threads(number):
            for rows in (*ROWS, MOST):
                found = library.linear(x[:rows], packed, outputs, ACTIVATIONS["gelu"])
                assert torch.equal(found, whole[:rows]), (rows, number)
    last = library.linear(x[MOST - 1 :], packed, outputs, ACTIVATIONS["gelu"])
    assert torch.equal(last[0], whole[-1])


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_out(dtype: str, library: Library) -> None:
    """A product writes to the columns that it is given, and to no others."""
    (weight, bias), x = layer_of(100, 41), strided(23, 100)
    product, packed = product_of(library, dtype, weight, bias)
    space = torch.full((30, 60), 7.0)
    out = space[4:27, 5:46]
    given = product(x, packed, 41, ACTIVATIONS["none"], out)
    assert given is out
    assert torch.equal(out, product(x, packed, 41, ACTIVATIONS["none"]))
    out.fill_(7.0)
    assert torch.equal(space, torch.full((30, 60), 7.0))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_no_rows(dtype: str, library: Library) -> None:
    """A product of no rows has no rows."""
    product, packed = product_of(library, dtype, *layer_of(100, 41))
    with threads(2):
        assert product(torch.empty(0, 100), packed, 41, ACTIVATIONS["gelu"]).shape == (0, 41)


def product_of(
    library: Library, dtype: str, weight: Tensor, bias: Tensor
) -> tuple[Callable[..., Tensor], Tensor]:
    if dtype == "float32":
        return library.linear, library.packed(weight, bias)
    needs_int8(library)
    whole, scales = in_blocks(weight, library.int8_block)
    return library.linear_int8, library.packed_int8(whole, scales, bias)


def needs_int8(library: Library) -> None:
    if not library.has_int8:
        pytest.skip(f"no int8 for this processor ({library.kind})")


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("inputs", INPUTS)
def test_linear_int8(inputs: int, outputs: int, library: Library) -> None:
    """An int8 product is the sum over blocks of whole numbers times both scales, but for float32's
    rounding, and so within a step an input of the unrounded inputs' product."""
    needs_int8(library)
    (weight, bias), x = layer_of(inputs, outputs), strided(MOST, inputs)
    x[:50] *= torch.logspace(-6, 6, 50).unsqueeze(1)
    factors = 2.0 ** torch.randint(-3, 4, (inputs,))
    whole, scales = in_blocks(weight, library.int8_block)
    packed = library.packed_int8(whole, scales, bias, factors)
    scaled = scales.double().repeat_interleave(library.int8_block, dim=1)[:, :inputs] * whole
    rounded, step, largest = rounded_inputs(x * factors, library)
    wanted, size = F.linear(rounded, scaled, bias.double()), F.linear(largest, scaled.abs())
    for name, function in FUNCTIONS.items():
        found = library.linear_int8(x, packed, outputs, ACTIVATIONS[name])
        assert ((found - function(wanted)).abs() <= 2e-6 * (size + bias.abs())).all(), name
    unrounded = F.linear((x * factors).double(), scaled, bias.double())
    assert ((wanted - unrounded).abs() <= F.linear(1.001 * step, scaled.abs())).all()


def rounded_inputs(x: Tensor, library: Library) -> tuple[Tensor, Tensor, Tensor]:
    """Rows rounded block by block; each number's step; and its size with its zero;
    `[n, inputs]` in float64."""
    rounded, steps, sizes = [], [], []
    for part in x.split(library.int8_block, dim=1):
        low = part.amin(dim=1, keepdim=True).clamp(max=0)
        high = part.amax(dim=1, keepdim=True).clamp(min=0)
        if library.int8_inputs == 8:
            step = (high / 255 - low / 255).clamp(min=1e-30)
            zero = (-low / step).round_()
        else:
            step, zero = torch.maximum(high, -low).clamp(min=1e-30) / 32767, torch.zeros_like(low)
        # float64 holds the exact sum, which is rounded once
        whole = (part.double() * (1 / step).double() + zero.double()).float().round_().double()
        rounded.append((whole - zero.double()) * step.double())
        steps.append(step.double().expand_as(part))
        sizes.append((whole.abs() + zero.double()) * step.double())
    return torch.cat(rounded, dim=1), torch.cat(steps, dim=1), torch.cat(sizes, dim=1)


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 13), (7, 17), (384, 1152), (1536, 48)])
def test_a_row_of_an_int8_product_is_its_own(inputs: int, outputs: int, library: Library) -> None:
    """A row of an int8 product is to the bit the same for any number of rows and of threads, beside
    larger rows too."""
    product, packed = product_of(library, "int8", *layer_of(inputs, outputs))
    x = strided(MOST, inputs) * torch.logspace(0, 3, MOST).unsqueeze(1)
    whole = product(x, packed, outputs, ACTIVATIONS["gelu"])
    for number in (1, 2, 3):
        with threads(number):
            for rows in (*ROWS, MOST):
                found = product(x[:rows], packed, outputs, ACTIVATIONS["gelu"])
                assert torch.equal(found, whole[:rows]), (rows, number)


@pytest.mark.parametrize("inputs", [5, 64, 101])
def test_zeros_and_what_is_not_finite_in_int8(inputs: int, library: Library) -> None:
    """A row of zeros gives the bias. A row with NaN or infinity gives NaN, and the others what they
    give without it."""
    weight, bias = layer_of(inputs, 37)
    product, packed = product_of(library, "int8", weight, bias)
    x = torch.randn(9, inputs)
    x[3] = 0
    before = product(x, packed, 37, ACTIVATIONS["none"])
    assert torch.equal(before[3], bias)
    x[1, 0], x[4, inputs - 1], x[8, inputs // 2] = torch.nan, torch.inf, -torch.inf
    found = product(x, packed, 37, ACTIVATIONS["none"])
    assert found[[1, 4, 8]].isnan().all()
    others = [0, 2, 3, 5, 6, 7]
    assert torch.equal(found[others], before[others])


def test_outliers_are_made_smaller(library: Library) -> None:
    """Told of inputs a hundred times as large as the others, a layer of 8-bit inputs loses far less
    of the others."""
    if library.int8_inputs != 8:
        pytest.skip(f"inputs of {library.int8_inputs} bits lose nothing ({library.kind})")
    (weight, bias), largest = layer_of(64, 48), torch.ones(64)
    largest[:2] = 100
    x = torch.rand(40, 64) * largest
    wanted = F.linear(x, weight, bias)
    told, untold = (
        (layer(x) - wanted).norm()
        for layer in (
            NativeQuantized(library, weight, bias, largest=largest),
            NativeQuantized(library, weight, bias),
        )
    )
    assert told < untold / 2


def test_the_largest_sums_in_int8(library: Library) -> None:
    """The largest weights and inputs of the widest layer do not overflow their sums."""
    inputs = 8192
    product, packed = product_of(library, "int8", torch.ones(17, inputs), torch.zeros(17))
    for x in (torch.full((3, inputs), 2.0), torch.full((3, inputs), -2.0)):
        found = product(x, packed, 17, ACTIVATIONS["none"])
        torch.testing.assert_close(found, x.sum(dim=1, keepdim=True).expand(3, 17))


def test_gelu(library: Library) -> None:
    """GELU is that of float64's error function, from the smallest numbers to the largest; NaN stays
    NaN."""
    special = [0.0, -0.0, 1e-6, -1e-6, 3.8, -3.8, 10.0, -10.0, -100.0, 1e30, -1e30, -3e38, 1e-38]
    x = torch.cat([torch.tensor(special), torch.linspace(-8, 8, 100_003)])
    found, wanted = library.activate(ACTIVATIONS["gelu"], x.clone()), F.gelu(x.double())
    assert ((found - wanted).abs() <= 2.5e-7 * x.abs().clamp(min=1)).all()
    assert (found[x < -6] == 0).all()
    ends = library.activate(
        ACTIVATIONS["gelu"], torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0])
    )
    assert ends[0] == torch.inf
    assert ends[1:3].isnan().all()  # as torch's: minus infinity times 0
    assert ends[3] == pytest.approx(0.8413447)


def test_relu(library: Library) -> None:
    """ReLU is exact; NaN stays NaN."""
    x = torch.cat([torch.randn(100), torch.tensor([0.0, torch.inf, -torch.inf])])
    assert torch.equal(library.activate(ACTIVATIONS["relu"], x.clone()), F.relu(x))
    assert library.activate(ACTIVATIONS["relu"], torch.tensor([torch.nan])).isnan().all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_tails_of_an_activation(name: str, library: Library) -> None:
    """Any number of values get what they get among many; those behind them stay as they are."""
    x = torch.randn(40_000)
    whole = library.activate(ACTIVATIONS[name], x.clone())
    for n in (*range(70), 16_383, 16_384, 16_385, 39_999):
        for number in (1, 3):
            found = x.clone()
            with threads(number):
                library.activate(ACTIVATIONS[name], found[:n])
            assert torch.equal(found[:n], whole[:n])
            assert torch.equal(found[n:], x[n:])


@pytest.mark.parametrize("outputs", [1, 2, 5, 1000])
@pytest.mark.parametrize("inputs", [1, 7, 32, 100, 384])
def test_dots(inputs: int, outputs: int, library: Library) -> None:
    """A head's product has float64's numbers, each row alone to the bit."""
    (weight, bias), x = layer_of(inputs, outputs), strided(9, inputs)
    found = library.dots(x, weight, bias)
    wanted = F.linear(x.double(), weight.double(), bias.double())
    size = F.linear(x.abs(), weight.abs(), bias.abs())
    assert ((found - wanted).abs() <= 1e-6 * size).all()
    for i in range(9):
        assert torch.equal(library.dots(x[i : i + 1], weight, bias)[0], found[i])


def norm_of(width: int) -> tuple[Tensor, Tensor]:
    return torch.randn(width), torch.randn(width)


def normed(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x.double(), x.shape[-1:], weight.double(), bias.double(), eps)


NEAR = {"rtol": 1e-5, "atol": 5e-6, "check_dtype": False}


@pytest.mark.parametrize("width", [5, 7, 16, 20, 384, 1000])
def test_norms(width: int, library: Library) -> None:
    """Norms have float64's numbers, also with a mean far from 0, and are each row's own to the
    bit; the norm of a sum is written to its second term."""
    x, y = torch.randn(70, width) + 5, torch.randn(70, width)
    weight, bias = norm_of(width)
    found = library.norm(x, weight, bias, 1e-5)
    torch.testing.assert_close(found, normed(x, weight, bias, 1e-5), **NEAR)
    summed, again = y.clone(), y.clone()
    assert library.add_norm(summed, x, weight, bias, 1e-12) is summed
    wanted = normed(x.double() + y.double(), weight, bias, 1e-12)
    torch.testing.assert_close(summed, wanted, **NEAR)
    with threads(2):
        assert torch.equal(library.norm(x[:33], weight, bias, 1e-5), found[:33])
        assert torch.equal(library.add_norm(again, x, weight, bias, 1e-12), summed)
    assert torch.equal(library.norm(x[69:], weight, bias, 1e-5)[0], found[69])


def test_a_norm_of_equal_numbers(library: Library) -> None:
    """A row of equal numbers is its norm's bias; NaN spoils its own row alone."""
    weight, bias = norm_of(20)
    x = torch.full((3, 20), 2.0)
    x[1, 19] = torch.nan
    found = library.norm(x, weight, bias, 1e-5)
    assert torch.equal(found[[0, 2]], bias.expand(2, 20))
    assert found[1].isnan().all()


@pytest.mark.parametrize("positioned", [True, False])
@pytest.mark.parametrize("typed", [True, False])
def test_embed(typed: bool, positioned: bool, library: Library) -> None:
    """Embeddings are the norm of the sum of those tables that there are."""
    width, tokens = 36, 77
    words, types, positions = torch.randn(50, width), torch.randn(2, width), torch.randn(9, width)
    ids = [torch.randint(len(table), (tokens,)) for table in (words, types, positions)]
    weight, bias = norm_of(width)
    total = words[ids[0]].double()
    if typed:
        total = total + types[ids[1]]
    if positioned:
        total = total + positions[ids[2]]

    def embedded(number: int) -> Tensor:
        with threads(number):
            return library.embed(
                (ids[0], words),
                (ids[1], types if typed else None),
                (ids[2], positions if positioned else None),
                (weight, bias),
                1e-5,
            )

    found = embedded(1)
    torch.testing.assert_close(found, normed(total, weight, bias, 1e-5), **NEAR)
    assert torch.equal(embedded(3), found)

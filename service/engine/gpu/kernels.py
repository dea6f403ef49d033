"""Triton kernels: adapters and heads of any number of tasks in one launch, and the residual
LayerNorm.

Importing this imports Triton, so only code for a GPU does. Each program takes one tile of rows,
finds the addresses of its segment's weights in the tables (`service.engine.gpu.tables`), and reads
the weights there: nothing is stacked or copied for a batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.engine.gpu.tables import Tables

# Columns of `Tables.segments`, as the kernels step over them.
ADAPTER_COLUMNS, PRODUCT_COLUMNS, LORA_COLUMNS = 6, 4, 6
# Bottlenecks, ranks and label counts are rounded up to these. tl.dot takes no side shorter than 16.
# Each size costs one more compilation, of seconds, and for bottlenecks one more CUDA graph.
INNERS = (16, 64, 256)
COLUMNS = (16, 64)
# Bytes of the largest operand that a program holds at once. Small tiles get wide chunks, so that a
# program with few tokens makes few loads in turn; tall tiles and wide bottlenecks get narrow ones,
# because they fill the registers and the shared memory.
CHUNK = 16384


def adapt(x: Tensor, layer: int, tables: Tables) -> None:
    """`x += U·gelu(D·x + b_D) + b_U` in place, `[T, d]`, each tile of rows with its segment's
    adapter.

    Columns of the segments: the addresses of the first adapted layer's down `[r, d]`, its bias
    `[r]`, up `[d, r]`, its bias `[d]`, then r and that layer's number; further layers follow each
    other in memory. Weights are in `x`'s dtype, sums in float32. Rows of adapters that begin above
    `layer` stay as they are.
    """
    assert x.is_contiguous(), "rows are found by their numbers"
    inner = next(size for size in INNERS if size >= tables.widest)
    _adapt[(len(tables.tiles),)](
        x,
        tables.tiles,
        tables.segments,
        layer,
        width=x.shape[1],
        inner=inner,
        height=tables.height,
        chunk=_chunk(x.shape[1], max(inner, tables.height) * x.element_size()),
        num_warps=4 if inner <= 64 else 8,
        num_stages=2,
    )


def low_rank(x: Tensor, y: Tensor, layer: int, tables: Tables) -> None:
    """`y += scale · B·A·x` in place, `x` `[T, inputs]` and `y` `[T, outputs]`, each tile of rows
    with its segment's adapter. The rows of both may lie apart, as in a slice of columns.

    Columns of the segments: the addresses of the first adapted layer's A `[r, inputs]` and B
    `[outputs, r]`, then r, that layer's number, the bits of the scale in float32, and nothing;
    further layers follow each other in memory. Weights are in `x`'s dtype, sums in float32. Rows of
    adapters that begin above `layer` stay as they are.
    """
    assert x.stride(1) == y.stride(1) == 1, "a row lies in one piece"
    inner = next(size for size in INNERS if size >= tables.widest)
    # By the smaller side: a feed-forward's inner layer then takes several chunks of the same size,
    # and no further compilation.
    chunk = _chunk(min(x.shape[1], y.shape[1]), max(inner, tables.height) * x.element_size())
    _low_rank[(len(tables.tiles),)](
        x,
        y,
        tables.tiles,
        tables.segments,
        layer,
        x.shape[1],
        y.shape[1],
        x.stride(0),
        y.stride(0),
        inner=inner,
        height=tables.height,
        chunk=chunk,
        num_warps=4 if inner <= 64 else 8,
        num_stages=2,
    )


def grouped(out: Tensor, depth: int, tables: Tables) -> None:
    """`out[i, :n] = W·x[i] + b`, each tile of rows with its segment's W and b, in float32; other
    columns stay as they are.

    Columns of the segments: the addresses of x `[rows, depth]`, W `[n, depth]` and b `[n]`, then n.
    """
    columns = next((size for size in COLUMNS if size >= tables.widest), COLUMNS[-1])
    _grouped[(len(tables.tiles), triton.cdiv(tables.widest, columns))](
        out,
        tables.tiles,
        tables.segments,
        out.stride(0),
        depth=depth,
        height=tables.height,
        columns=columns,
        chunk=_chunk(depth, columns * out.element_size()),
        num_warps=4,
        num_stages=2,
    )


def add_norm(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm(y + x) over the last dimension, `[T, d]`, with the sum and its statistics in
    float32."""
    out = torch.empty_like(y)
    block = triton.next_power_of_2(y.shape[1])
    _add_norm[(len(y),)](
        y,
        x,
        weight,
        bias,
        out,
        eps,
        width=y.shape[1],
        block=block,
        num_warps=min(16, max(1, block // 256)),
    )
    return out


def _chunk(length: int, side: int) -> int:
    """How much of the summed dimension is taken at once; the operand's other side takes `side`
    bytes."""
    return max(16, min(int(triton.next_power_of_2(length)), CHUNK // side))


@triton.jit(do_not_specialize=["layer"])  # nor compiled anew for the layers 1 and 16
def _adapt(
    x,
    tiles,
    adapters,
    layer,
    width: tl.constexpr,
    inner: tl.constexpr,
    height: tl.constexpr,
    chunk: tl.constexpr,
):
    tile = tiles + 3 * tl.program_id(0)
    tokens = tl.load(tile + 1).to(tl.int32)
    adapter = adapters + 6 * tl.load(tile + 2)
    r = tl.load(adapter + 4).to(tl.int32)
    own = layer - tl.load(adapter + 5)  # int64: offsets into all layers may pass 2³¹
    if (tokens > 0) & (own >= 0):
        down = tl.load(adapter).to(tl.pointer_type(x.dtype.element_ty)) + own * r * width
        down_bias = tl.load(adapter + 1).to(tl.pointer_type(x.dtype.element_ty)) + own * r
        up = tl.load(adapter + 2).to(tl.pointer_type(x.dtype.element_ty)) + own * r * width
        up_bias = tl.load(adapter + 3).to(tl.pointer_type(x.dtype.element_ty)) + own * width
        rows = tl.arange(0, height)[:, None]
        places = x + tl.load(tile) * width + rows * width
        units = tl.arange(0, inner)

        z = tl.full((height, inner), 0.0, tl.float32)
        for start in range(0, width, chunk):
            columns = start + tl.arange(0, chunk)
            part = tl.load(
                places + columns[None, :],
                mask=(rows < tokens) & (columns < width)[None, :],
                other=0.0,
            )
            known = (columns < width)[:, None] & (units < r)[None, :]
            # [chunk, inner]
            weights = tl.load(
                down + units[None, :] * width + columns[:, None], mask=known, other=0.0
            )
            z = tl.dot(part, weights, z, input_precision="ieee")
        z += tl.load(down_bias + units, mask=units < r, other=0.0).to(tl.float32)[None, :]
        z = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))  # units beyond r stay 0
        hidden = z.to(x.dtype.element_ty)

        for start in range(0, width, chunk):
            columns = start + tl.arange(0, chunk)
            known = (units < r)[:, None] & (columns < width)[None, :]
            # [inner, chunk]
            weights = tl.load(up + columns[None, :] * r + units[:, None], mask=known, other=0.0)
            y = tl.dot(hidden, weights, input_precision="ieee")
            y += tl.load(up_bias + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]
            mask = (rows < tokens) & (columns < width)[None, :]
            y += tl.load(places + columns[None, :], mask=mask, other=0.0).to(tl.float32)
            tl.store(places + columns[None, :], y.to(x.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["layer"])
def _low_rank(
    x,
    y,
    tiles,
    adapters,
    layer,
    inputs,
    outputs,
    x_stride,
    y_stride,
    inner: tl.constexpr,
    height: tl.constexpr,
    chunk: tl.constexpr,
):
    tile = tiles + 3 * tl.program_id(0)
    first = tl.load(tile)  # int64, as the offsets that it gives
    tokens = tl.load(tile + 1).to(tl.int32)
    adapter = adapters + 6 * tl.load(tile + 2)
    r = tl.load(adapter + 2).to(tl.int32)
    own = layer - tl.load(adapter + 3)
    if (tokens > 0) & (own >= 0):
        a = tl.load(adapter).to(tl.pointer_type(x.dtype.element_ty)) + own * r * inputs
        b = tl.load(adapter + 1).to(tl.pointer_type(x.dtype.element_ty)) + own * r * outputs
        scale = tl.load(adapter + 4).to(tl.int32).to(tl.float32, bitcast=True)
        rows = tl.arange(0, height)[:, None]
        sources = x + first * x_stride + rows * x_stride
        places = y + first * y_stride + rows * y_stride
        units = tl.arange(0, inner)

        z = tl.full((height, inner), 0.0, tl.float32)
        for start in range(0, inputs, chunk):
            columns = start + tl.arange(0, chunk)
            part = tl.load(
                sources + columns[None, :],
                mask=(rows < tokens) & (columns < inputs)[None, :],
                other=0.0,
            )
            known = (columns < inputs)[:, None] & (units < r)[None, :]
            # [chunk, inner]
            weights = tl.load(a + units[None, :] * inputs + columns[:, None], mask=known, other=0.0)
            z = tl.dot(part, weights, z, input_precision="ieee")
        hidden = z.to(x.dtype.element_ty)

        for start in range(0, outputs, chunk):
            columns = start + tl.arange(0, chunk)
            known = (units < r)[:, None] & (columns < outputs)[None, :]
            # [inner, chunk]
            weights = tl.load(b + columns[None, :] * r + units[:, None], mask=known, other=0.0)
            added = tl.dot(hidden, weights, input_precision="ieee") * scale
            mask = (rows < tokens) & (columns < outputs)[None, :]
            added += tl.load(places + columns[None, :], mask=mask, other=0.0).to(tl.float32)
            tl.store(places + columns[None, :], added.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["stride"])
def _grouped(
    out,
    tiles,
    products,
    stride,
    depth: tl.constexpr,
    height: tl.constexpr,
    columns: tl.constexpr,
    chunk: tl.constexpr,
):
    tile = tiles + 3 * tl.program_id(0)
    first = tl.load(tile)
    count = tl.load(tile + 1).to(tl.int32)
    product = products + 4 * tl.load(tile + 2)
    n = tl.load(product + 3).to(tl.int32)
    begin = tl.program_id(1) * columns
    if (count > 0) & (begin < n):
        x = tl.load(product).to(tl.pointer_type(tl.float32)) + first * depth
        weight = tl.load(product + 1).to(tl.pointer_type(tl.float32))
        bias = tl.load(product + 2).to(tl.pointer_type(tl.float32))
        rows = tl.arange(0, height)[:, None]
        outputs = begin + tl.arange(0, columns)
        y = tl.full((height, columns), 0.0, tl.float32)
        for start in range(0, depth, chunk):
            inputs = start + tl.arange(0, chunk)
            part = tl.load(
                x + rows * depth + inputs[None, :],
                mask=(rows < count) & (inputs < depth)[None, :],
                other=0.0,
            )
            known = (inputs < depth)[:, None] & (outputs < n)[None, :]
            weights = tl.load(
                weight + outputs[None, :] * depth + inputs[:, None], mask=known, other=0.0
            )
            y = tl.dot(part, weights, y, input_precision="ieee")
        y += tl.load(bias + outputs, mask=outputs < n, other=0.0)[None, :]
        places = out + first * stride + rows * stride + outputs[None, :]
        tl.store(places, y, mask=(rows < count) & (outputs < n)[None, :])


@triton.jit
def _add_norm(y, x, weight, bias, out, eps, width: tl.constexpr, block: tl.constexpr):
    columns = tl.arange(0, block)
    known = columns < width
    start = tl.program_id(0).to(tl.int64) * width
    total = tl.load(y + start + columns, mask=known, other=0.0).to(tl.float32)
    total += tl.load(x + start + columns, mask=known, other=0.0).to(tl.float32)
    centred = tl.where(known, total - tl.reduce(total, 0, _plus) / width, 0.0)
    scaled = centred * tl.rsqrt(tl.reduce(centred * centred, 0, _plus) / width + eps)
    scaled *= tl.load(weight + columns, mask=known, other=0.0).to(tl.float32)
    scaled += tl.load(bias + columns, mask=known, other=0.0).to(tl.float32)
    tl.store(out + start + columns, scaled.to(out.dtype.element_ty), mask=known)


# Not tl.sum: it is compiled wherever Triton was imported before its interpreter was asked for, as
# torch does in the tests.
@triton.jit
def _plus(a, b):
    return a + b

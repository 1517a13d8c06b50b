"""The Triton programs behind `kernels`, which alone imports this. Each takes one tile: WIDTH columns, all lanes."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

ELEMENTS = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.int64: tl.int64,
}


@triton.jit
def _fixed(values, weights, MAGIC: tl.constexpr, MAGIC_BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    product = values.to(tl.float64) * weights
    return (product + MAGIC).to(tl.int64, bitcast=True) - MAGIC_BITS


@triton.jit
def weighted_sum(  # type: ignore[no-untyped-def]
    entries,
    tiles,
    weights,
    out,
    start,
    start_weights,
    lanes,
    ELEMENT: tl.constexpr,
    SUM: tl.constexpr,
    EXACT: tl.constexpr,
    WITH_START: tl.constexpr,
    MAGIC: tl.constexpr,
    MAGIC_BITS: tl.constexpr,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,
):
    tile = tl.program_id(0)
    entry = entries + 3 * tl.load(tiles + 2 * tile)
    block = tl.load(entry).to(tl.pointer_type(ELEMENT))
    size = tl.load(entry + 1)
    columns = tl.load(tiles + 2 * tile + 1) + tl.arange(0, WIDTH)
    inside = columns < size
    target = tl.load(entry + 2) + columns
    total = tl.load(out + target, mask=inside, other=0)
    if WITH_START:
        origin = tl.load(start + target, mask=inside, other=0.0)[None, :]
    for lane in range(0, lanes, LANES):
        rows = (lane + tl.arange(0, LANES)).to(tl.int64)
        weight = tl.load(weights + rows, mask=rows < lanes, other=0.0)[:, None]
        # Not read at all where the weight is 0: a diverged lane's NaN would survive the product.
        used = (weight != 0) & inside[None, :]
        values = tl.load(block + rows[:, None] * size + columns[None, :], mask=used, other=0.0)
        if EXACT:
            total += tl.sum(_fixed(values, weight, MAGIC, MAGIC_BITS), axis=0)
        else:
            total += tl.sum(values.to(SUM) * weight.to(SUM), axis=0)
        if WITH_START:
            share = tl.load(start_weights + rows, mask=rows < lanes, other=0.0)[:, None]
            if EXACT:
                total += tl.sum(_fixed(origin, share, MAGIC, MAGIC_BITS), axis=0)
            else:
                total += tl.sum(origin.to(SUM) * share.to(SUM), axis=0)
    tl.store(out + target, total, mask=inside)


@triton.jit
def squared_norms(  # type: ignore[no-untyped-def]
    entries,
    tiles,
    start,
    cells,
    lanes,
    num_tiles,
    ELEMENT: tl.constexpr,
    WITH_START: tl.constexpr,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,
):
    tile = tl.program_id(0)
    entry = entries + 3 * tl.load(tiles + 2 * tile)
    block = tl.load(entry).to(tl.pointer_type(ELEMENT))
    size = tl.load(entry + 1)
    columns = tl.load(tiles + 2 * tile + 1) + tl.arange(0, WIDTH)
    inside = columns < size
    if WITH_START:
        origin = tl.load(start + tl.load(entry + 2) + columns, mask=inside, other=0.0).to(tl.float64)[None, :]
    for lane in range(0, lanes, LANES):
        rows = (lane + tl.arange(0, LANES)).to(tl.int64)
        used = (rows < lanes)[:, None] & inside[None, :]
        values = tl.load(block + rows[:, None] * size + columns[None, :], mask=used, other=0.0).to(tl.float64)
        if WITH_START:
            values = tl.where(used, values - origin, 0.0)
        tl.store(cells + rows * num_tiles + tile, tl.sum(values * values, axis=1), mask=rows < lanes)

"""The Triton kernels, interpreted on the CPU, against float64 and against the fixed-point sum of plain torch."""

import importlib.util
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedscale.federated.aggregation import Clip, ExactAccumulator, kernels, lane_norms, make_accumulator

WIDTHS = (1, kernels.WIDTH - 1, kernels.WIDTH, 3 * kernels.WIDTH + 5)
OFFSETS = [3 + sum(WIDTHS[:i]) + i for i in range(len(WIDTHS))]
SIZE = OFFSETS[-1] + WIDTHS[-1] + 4
BITS = 40
SUMS = (torch.float32, torch.float64, torch.int64)
GROUPS = (1, kernels.LANES, 2 * kernels.LANES + 3)  # lanes; the last leaves a tile partly filled
CASES = list(itertools.product(SUMS, GROUPS, (False, True), (torch.float32, torch.bfloat16)))


def case(out: torch.dtype, lanes: int, with_start: bool, dtype: torch.dtype) -> dict[str, Any]:
    draws = torch.Generator().manual_seed(lanes)
    blocks = [torch.randn(lanes, width, generator=draws).to(dtype) for width in WIDTHS]
    weights = torch.rand(lanes, generator=draws, dtype=torch.float64)
    factors = torch.rand(lanes, generator=draws, dtype=torch.float64)
    start = torch.randn(SIZE, generator=draws) if with_start else None
    if lanes > 2:  # two lanes have diverged, and are left out
        weights[[1, lanes - 1]] = 0
        for block in blocks:
            block[1], block[lanes - 1, 0] = math.nan, math.inf
    weights /= weights.sum()
    factors = factors if with_start else torch.ones_like(factors)
    scale = 2.0**BITS if out == torch.int64 else 1.0
    return {
        "blocks": blocks,
        "offsets": OFFSETS,
        "weights": weights * factors * scale,
        "start": start,
        "start_weights": weights * (1 - factors) * scale if with_start else None,
        "out": torch.zeros(SIZE, dtype=out) + 1,
        "plain_weights": weights,
        "factors": factors,
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What the kernels give for every case."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton comes with torch on Linux alone")
    folder = tmp_path_factory.mktemp("interpreted")
    torch.save([case(*parameters) for parameters in CASES], folder / "cases.pt")
    script = Path(__file__).with_name("interpreted.py")
    command = [sys.executable, str(script), str(folder / "cases.pt"), str(folder / "results.pt")]
    subprocess.run(command, check=True, env={**os.environ, "TRITON_INTERPRET": "1"})
    return torch.load(folder / "results.pt")


def name(index: int) -> str:
    out, lanes, with_start, dtype = CASES[index]
    return f"{out}-{lanes}-{'clipped' if with_start else 'plain'}-{dtype}".replace("torch.", "")


@pytest.mark.parametrize("index", range(len(CASES)), ids=name)
def test_the_sum_is_what_plain_torch_gives(index: int, results: list[dict[str, Tensor]]) -> None:
    dtype, given = CASES[index][0], case(*CASES[index])
    out = results[index]["out"]
    clip = Clip(given["start"], given["factors"]) if given["start"] is not None else None
    kinds = {torch.float32: "fp32", torch.float64: "fp64", torch.int64: "exact"}
    plain = make_accumulator(kinds[dtype], SIZE, torch.device("cpu"), BITS)  # type: ignore[arg-type]
    plain.add(given["blocks"], OFFSETS, given["plain_weights"], clip=clip)
    plain.vector += 1
    if dtype == torch.int64:
        assert isinstance(plain, ExactAccumulator) and torch.equal(out, plain.vector)
    else:
        torch.testing.assert_close(out, plain.vector, rtol=0, atol=2e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("index", range(len(CASES)), ids=name)
def test_the_sum_is_the_sum_in_float64(index: int, results: list[dict[str, Tensor]]) -> None:
    given = case(*CASES[index])
    expected = torch.ones(SIZE, dtype=torch.float64)
    unit = 2.0**-BITS if CASES[index][0] == torch.int64 else 1.0
    expected *= unit
    for lane, (weight, factor) in enumerate(zip(given["plain_weights"], given["factors"], strict=True)):
        for block, offset in zip(given["blocks"], OFFSETS, strict=True):
            if weight == 0:
                continue
            value, at = block[lane].double(), slice(offset, offset + block.shape[1])
            origin = given["start"][at].double() if given["start"] is not None else torch.zeros_like(value)
            expected[at] += weight * (origin + factor * (value - origin))
    torch.testing.assert_close(results[index]["out"].double() * unit, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("index", range(len(CASES)), ids=name)
def test_the_squared_norms_are_those_of_plain_torch(index: int, results: list[dict[str, Tensor]]) -> None:
    given = case(*CASES[index])
    expected = lane_norms([block.double() for block in given["blocks"]], OFFSETS, given["start"])
    squares = results[index]["squares"]
    finite = expected.isfinite()
    assert torch.equal(finite, squares.isfinite()) and int((~finite).sum()) == (2 if len(finite) > 2 else 0)
    torch.testing.assert_close(squares[finite].sqrt(), expected[finite], rtol=1e-12, atol=0)


@pytest.mark.parametrize("out", SUMS, ids=str)
def test_only_sums_in_floating_point_are_compiled_with_fused_products(out: torch.dtype) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fedscale.federated.aggregation import triton_kernels

    constants = kernels.constants(torch.float32, out, with_start=True)
    pointers = {"entries": "i64", "tiles": "i64", "weights": "fp64", "start": "fp32", "start_weights": "fp64"}
    signature = {name: f"*{kind}" for name, kind in pointers.items()}
    names = {torch.float32: "fp32", torch.float64: "fp64", torch.int64: "i64"}
    signature |= {"out": f"*{names[out]}", "lanes": "i32"}
    source = ASTSource(triton_kernels.weighted_sum, signature | dict.fromkeys(constants, "constexpr"), constants)
    options = {"enable_fp_fusion": kernels.fused(out)}
    assembly = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    assert ("fma." in assembly) == (out != torch.int64)


def test_a_cpu_tensor_never_goes_to_the_kernels() -> None:
    assert not kernels.usable(torch.zeros(1))


def test_the_package_does_not_import_triton() -> None:
    program = "import sys, fedscale.federated.aggregation; sys.exit('triton' in sys.modules)"
    blocked = "import sys; sys.modules['triton'] = None; import fedscale.federated.aggregation"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    assert subprocess.run([sys.executable, "-c", blocked], check=False).returncode == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("index", range(len(CASES)), ids=name)
def test_compiled_kernels_give_what_the_cpu_gives(index: int) -> None:
    given, (dtype, *_) = case(*CASES[index]), CASES[index]
    kind = {torch.float32: "fp32", torch.float64: "fp64", torch.int64: "exact"}[dtype]
    sums = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        accumulator = make_accumulator(kind, SIZE, device, BITS)  # type: ignore[arg-type]
        clip = Clip(given["start"].to(device), given["factors"]) if given["start"] is not None else None
        accumulator.add([b.to(device) for b in given["blocks"]], OFFSETS, given["plain_weights"], clip=clip)
        sums.append(accumulator.vector.cpu())
    torch.testing.assert_close(sums[1], sums[0], rtol=0, atol={"fp32": 2e-6, "fp64": 1e-14, "exact": 0}[kind])

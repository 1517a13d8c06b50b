"""A language model that is loaded in bf16, as on a GPU, is trained by two ranks under every strategy alike."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import ranks

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("language_worker.py")
LAUNCH = {"ddp": "", "fsdp2": "launch/accelerate/fsdp2.yaml", "zero3": "launch/deepspeed/zero3.json"}


def trained(out: Path, how: str, precision: str, strategy: str) -> dict[str, Any]:
    done = ranks(2, WORKER, out, how, precision, LAUNCH[strategy])
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("how", ["lora", "full"])
def test_fsdp2_and_zero3_train_it_as_ddp_does(tmp_path, how):
    wanted = trained(tmp_path / "ddp", how, "no", "ddp")["losses"]
    assert wanted[-1] < wanted[0]
    for strategy in ("fsdp2", "zero3"):
        assert trained(tmp_path / strategy, how, "no", strategy)["losses"] == pytest.approx(wanted, rel=1e-5)


def test_in_mixed_precision_fsdp2_rounds_neither_losses_nor_the_sum_of_gradients(tmp_path):
    found = trained(tmp_path / "fsdp2", "full", "bf16", "fsdp2")
    assert found["fine"] == {"loss": True, "gradient": True}
    assert found["losses"] == pytest.approx(trained(tmp_path / "ddp", "full", "bf16", "ddp")["losses"], rel=3e-3)

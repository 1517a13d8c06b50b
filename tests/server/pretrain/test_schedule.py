"""α(t) and the learning rate are pure functions of the step."""

import pytest

from fedscale.config.schema import AlphaConfig
from fedscale.server.pretrain.schedule import alpha_at, lr_at


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_alpha_rises_from_start_to_end(kind):
    values = [alpha_at(step, 11, AlphaConfig(kind, 0.2, 0.9)) for step in range(11)]
    assert values[0] == pytest.approx(0.2) and values[-1] == pytest.approx(0.9)
    assert values == sorted(values) and values[5] == pytest.approx(0.55)


def test_linear_and_cosine_differ_on_the_way():
    assert alpha_at(1, 11, AlphaConfig("linear")) == pytest.approx(0.1)
    assert alpha_at(1, 11, AlphaConfig("cosine")) < 0.05


def test_constant_alpha_is_its_end_throughout():
    assert {alpha_at(step, 4, AlphaConfig("constant", 0.0, 0.5)) for step in range(4)} == {0.5}


def test_one_step_alone_is_the_last():
    assert alpha_at(0, 1, AlphaConfig()) == 1.0


def test_lr_warms_up_then_falls_towards_zero():
    rates = [lr_at(step, 100, 0.1, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.01) and rates[9] == rates[10] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] < 1e-4
    assert lr_at(55, 100, 0.1, 0.1) == pytest.approx(0.05)


def test_without_warmup_the_first_step_has_the_peak():
    assert lr_at(0, 10, 0.3, 0.0) == 0.3

"""Rates: what runs tell of them, a file that keeps them, and what refuses to be one."""

from pathlib import Path

import numpy as np
import pytest

from fedscale.errors import UserError
from fedscale.planning.fit import Measured, fitted
from fedscale.planning.hardware import hardware, sheet
from fedscale.planning.predict import total_seconds
from fedscale.planning.rates import MEASURED, SHEET, Rates, load_rates
from fedscale.planning.work import KINDS, Work

NODE = hardware("cpu", 2)
TRUE = {"conv.fp32": 3.1e-11, "traffic": 4.0e-10, "call": 3.5e-5, "link": 2e-9, "message": 9e-4, "start": 1.7}


def runs(count: int, noise: float = 0.0, stage: str = "federate") -> list[Measured]:
    draws = np.random.default_rng(3)
    found = []
    for number in range(count):
        amounts = {kind: float(np.exp(draws.normal(0, 1)) / seconds) for kind, seconds in TRUE.items()} | {"start": 1.0}
        took = sum(amount * TRUE[kind] for kind, amount in amounts.items())
        found.append(Measured(str(number), stage, Work(amounts), took * np.exp(noise * draws.normal())))
    return found


def test_a_fit_recovers_the_rates_that_made_the_runs() -> None:
    rates = fitted(runs(20), "cpu", 2)
    assert rates.measured["federate"] == pytest.approx(TRUE, rel=0.05)
    assert rates.runs == {"federate": 20}


def test_noisy_runs_still_predict_others_that_were_not_fitted() -> None:
    seconds, _ = fitted(runs(30, noise=0.05)[:20], "cpu", 2).of("federate", NODE)
    errors = [total_seconds(run.work, NODE, seconds)[0] / run.seconds - 1 for run in runs(30)[20:]]
    assert np.abs(errors).max() < 0.15


def test_no_rate_is_negative_and_what_no_run_did_has_none() -> None:
    rates = fitted(runs(4, noise=0.4), "cpu", 2).measured["federate"]
    assert set(rates) == set(TRUE) and min(rates.values()) >= 0


def test_a_stage_with_few_runs_leans_on_the_others() -> None:
    lone = runs(21)[-1]
    rates = fitted([*runs(20), Measured("lone", "align", lone.work, lone.seconds)], "cpu", 2)
    assert rates.measured["align"] == pytest.approx(TRUE, rel=0.2)


def test_kinds_that_were_not_measured_keep_the_data_sheets_rate() -> None:
    seconds, basis = Rates("cpu", {"federate": {"call": 1.0}}).of("federate", NODE)
    assert (seconds["call"], basis["call"]) == (1.0, MEASURED)
    assert (seconds["wire"], basis["wire"]) == (sheet(NODE)["wire"], SHEET)
    assert Rates("cpu", {"federate": {"call": 1.0}}).of("federate batched", NODE)[0]["call"] == 1.0
    own = {"federate": {"call": 1.0}, "federate batched": {"call": 2.0}}
    assert Rates("cpu", own).of("federate batched", NODE)[0]["call"] == 2.0


def test_a_file_of_rates_reads_back(tmp_path: Path) -> None:
    rates = fitted(runs(8), "cpu", 2)
    rates.save(tmp_path / "rates.json")
    assert load_rates(tmp_path / "rates.json", NODE) == rates


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", "not a file of rates"),
        ("[1]", "not a file of rates"),
        ('{"format": "fedscale rates 1", "gpu": "h200", "runs": {}, "seconds": {}}', "rates of h200, --gpu cpu"),
        (
            '{"format": "fedscale rates 1", "gpu": "cpu", "runs": {}, "seconds": {"align": {"hops": 1}}}',
            "hops is no kind",
        ),
    ],
)
def test_what_is_no_file_of_these_rates_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "rates.json").write_text(text)
    with pytest.raises(UserError, match=told):
        load_rates(tmp_path / "rates.json", NODE)


def test_no_run_to_fit_is_a_mistake() -> None:
    with pytest.raises(UserError, match="no finished stage"):
        fitted([], "cpu")


def test_every_kind_has_a_rate_on_every_device() -> None:
    for name in ("v100", "a100", "l40s", "h100", "h200", "b200", "cpu"):
        rates = sheet(hardware(name))
        assert set(rates) == set(KINDS)
        assert all(rates[kind] > 0 for kind in KINDS if kind != "crowd"), name
    with pytest.raises(UserError, match="--gpu h20: expected one of v100"):
        hardware("h20")

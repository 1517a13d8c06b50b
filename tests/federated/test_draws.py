"""A client's numbers are a hash of (seed, purpose, round, client, counter), and a good one."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from fedscale.federated.draws import client_keys, draw, keep_mask

WORD = 1 << 64


def splitmix64(seed: int, count: int) -> list[int]:
    """The published generator, in Python's unbounded integers."""
    numbers = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) % WORD
        z = seed
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
        numbers.append(z ^ (z >> 31))
    return numbers


def unsigned(words: np.ndarray) -> list[int]:
    return [int(word) % WORD for word in words.tolist()]


def keys(count: int, seed: int = 3) -> torch.Tensor:
    return torch.from_numpy(client_keys(seed, "dropout", 1, np.arange(count)))


def test_the_numbers_are_those_of_splitmix64() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert splitmix64(1234567, 4) == published
    for seed in (1234567, 0, 1, (1 << 63) - 1, WORD - 1, 0x9E3779B97F4A7C15):
        key = np.array([seed], dtype=np.uint64).view(np.int64)
        assert unsigned(draw(key, np.arange(100))) == splitmix64(seed, 100)


def test_numpy_and_torch_draw_the_same() -> None:
    draws = np.random.default_rng(0)
    lanes = draws.integers(-(1 << 63), (1 << 63) - 1, size=50)
    counters = np.concatenate([np.arange(200), (1 << 32) * np.arange(200), draws.integers(0, 1 << 60, size=200)])
    ours = draw(torch.from_numpy(lanes)[:, None], torch.from_numpy(counters))
    assert np.array_equal(draw(lanes[:, None], counters), ours.numpy())


def test_keys_differ_by_seed_purpose_round_and_client_and_by_nothing_else() -> None:
    made = [
        client_keys(seed, purpose, round_number, np.arange(200))
        for seed, purpose, round_number in itertools.product((0, 1), ("order", "augment", "dropout"), range(20))
    ]
    assert len(np.unique(np.concatenate(made))) == 2 * 3 * 20 * 200
    some, all_of_them = client_keys(1, "order", 2, np.array([7, 3])), client_keys(1, "order", 2, np.arange(9))
    assert np.array_equal(some, all_of_them[[7, 3]])


@pytest.mark.parametrize("shift", [0, 16, 32, 48])
def test_every_sixteen_bits_of_a_draw_are_uniform(shift: int) -> None:
    # 60 clients, 4 "epochs", 1,000 counters each; 256 cells. p below 1e-4 would be worse luck than any seed deserves.
    lanes = client_keys(11, "augment", 4, np.arange(60))
    counters = np.arange(4)[:, None] * (1 << 32) + np.arange(1000)
    bits = (draw(lanes[:, None], counters.reshape(1, -1)) >> shift) & 0xFFFF
    counts = np.bincount(bits.reshape(-1) >> 8, minlength=256)
    assert 1e-4 < stats.chisquare(counts).pvalue < 1 - 1e-4
    assert 1e-4 < stats.chisquare(np.bincount(bits.reshape(-1) & 0xFF, minlength=256)).pvalue < 1 - 1e-4


def test_first_draws_of_neighbouring_clients_and_rounds_are_uniform_and_uncorrelated() -> None:
    counters = np.zeros(500, dtype=np.int64)
    first = np.stack([draw(client_keys(5, "order", r, np.arange(500)), counters) for r in range(40)])
    uniform = (first.view(np.uint64) >> np.uint64(11)) / 2.0**53
    assert stats.kstest(uniform.reshape(-1), "uniform").pvalue > 1e-4
    for a, b in ((uniform[:, 1:], uniform[:, :-1]), (uniform[1:], uniform[:-1])):
        assert abs(np.corrcoef(a.reshape(-1), b.reshape(-1))[0, 1]) < 5 / a.size**0.5  # five standard deviations


@pytest.mark.parametrize("keep", [0.5, 0.75, 0.9, 0.1])
def test_a_mask_keeps_the_share_that_was_asked_for(keep: float) -> None:
    mask = keep_mask(keys(20), 0, 20_001, keep).double()
    assert abs(mask.mean().item() - keep) < 5 * (keep * (1 - keep) / mask.numel()) ** 0.5
    by_lane = 5 * (keep * (1 - keep) / mask.shape[1]) ** 0.5
    assert ((mask.mean(1) - keep).abs() < by_lane).all()
    for place in range(4):  # of the four elements that one draw serves
        assert abs(mask[:, place::4].mean().item() - keep) < 5 * (keep * (1 - keep) * 4 / mask.numel()) ** 0.5


@pytest.mark.parametrize(("keep", "share"), [(0.0, 0.0), (1 - 1e-5, 1.0), (1 - 1e-7, 1.0), (1e-7, 0.0)])
def test_extreme_shares_do_not_wrap_around(keep: float, share: float) -> None:
    assert keep_mask(keys(5), 0, 20_000, keep).double().mean().item() == pytest.approx(share, abs=2e-4)


def test_masks_of_lanes_steps_layers_and_neighbouring_elements_are_independent() -> None:
    counters = range(12)  # step · layers + layer
    masks = torch.stack([keep_mask(keys(6), counter, 4000, 0.5) for counter in counters]).double().flatten(0, 1) - 0.5
    agreement = 4 * masks @ masks.T / 4000
    agreement.fill_diagonal_(0)
    assert agreement.abs().max() < 5.5 / 4000**0.5
    for lag in (1, 2, 3, 4, 8):
        assert abs((4 * masks[:, lag:] * masks[:, :-lag]).mean()) < 5 / masks.numel() ** 0.5


def test_a_mask_does_not_depend_on_how_many_lanes_are_computed_together() -> None:
    together = keep_mask(keys(7), 5, 1001, 0.7)
    for lane in range(7):
        assert torch.equal(keep_mask(keys(7)[lane : lane + 1], 5, 1001, 0.7)[0], together[lane])
    assert torch.equal(keep_mask(keys(7)[2:5], torch.tensor(5), 1001, 0.7), together[2:5])


@pytest.mark.parametrize("features", [1, 3, 16, 50])
def test_the_mask_of_a_sample_does_not_depend_on_how_many_follow_it_in_the_batch(features: int) -> None:
    whole = keep_mask(keys(3), 2, 10 * features, 0.6).view(3, 10, features)
    for batch in range(1, 10):
        assert torch.equal(keep_mask(keys(3), 2, batch * features, 0.6).view(3, batch, features), whole[:, :batch])

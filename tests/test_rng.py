"""Randomness is a function of its purpose, and of nothing else."""

import numpy as np
import torch

from fedscale.rng import derive, numpy_generator, torch_generator


def test_equal_purposes_give_equal_numbers_whatever_was_drawn_before() -> None:
    torch.rand(3)
    np.random.rand(3)
    first = torch.rand(4, generator=torch_generator(1, "order", 2, 3))
    assert torch.equal(first, torch.rand(4, generator=torch_generator(1, "order", 2, 3)))
    assert np.array_equal(numpy_generator(1, "x").random(4), numpy_generator(1, "x").random(4))


def test_purposes_do_not_run_into_each_other() -> None:
    seeds = [derive(1, 2, 3), derive(12, 3), derive(1, 23), derive(1, "2", 3), derive(1, 3, 2), derive(2, 1, 3)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_numbers_are_the_same_on_every_machine_and_version() -> None:
    assert derive(7, "cohort", 1) == 5884488010931037218

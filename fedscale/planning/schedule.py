"""Who waits for whom: the engine's own cohorts, groups and deals, carried out on any number of ranks by a clock.

`sample_cohort`, `by_steps`, `groups_of`, `placement` and `CostModel` are those of `federated.cohort`; nothing is
trained. What is simulated is how long a group takes: its cost, times a log-normal factor that nobody can know before.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedscale.federated.cohort import CostModel, by_steps, even_groups_of, groups_of, placement, sample_cohort
from fedscale.federated.plan import local_steps
from fedscale.rng import numpy_generator

Deal = Literal["largest", "arrival", "random", "queue"]
DEALS: tuple[Deal, ...] = ("largest", "arrival", "random", "queue")
WEIGHED = 24  # rounds of which the mean is taken for a plan


@dataclass(frozen=True)
class Population:
    """Clients by their images, and how many are drawn for a round; `lanes` are those of a group."""

    sizes: np.ndarray
    per_round: int
    lanes: int
    batch_size: int
    local_epochs: int
    seed: int
    even_groups: bool = False

    def groups(self, number: int) -> list[list[int]]:
        """Steps of each client of each group of a round, as the engine forms them."""
        drawn = sample_cohort(self.seed, number, len(self.sizes), self.per_round)
        held = [client for client in drawn if self.sizes[client]]
        ordered = by_steps(held, [int(self.sizes[client]) for client in held])
        steps = [self.steps(int(self.sizes[client])) for client in ordered]
        return even_groups_of(steps, steps, self.lanes) if self.even_groups else groups_of(steps, self.lanes)

    def steps(self, images: int) -> int:
        """A client's optimiser steps in a round."""
        return local_steps(images, self.batch_size, self.local_epochs)


@dataclass(frozen=True)
class Share:
    """Of a round, on average: steps of all clients, and of the busiest rank, which the others wait for."""

    steps: float
    busiest: float
    calls: float  # passes that the busiest rank queues: of lanes side by side, one for all
    clients: float
    busiest_clients: float

    def of(self, ranks: int, busy: int) -> float:
        """The share of the ranks' time in which they wait; `busy` of them compute at a time."""
        return 1 - self.steps / max(self.busiest * min(ranks, busy), 1e-9) if self.steps else 0.0


def weighed(population: Population, ranks: int, cores: float, rounds: int) -> Share:
    """The mean over rounds spread over the run, each dealt by `placement`; cost is taken as proportional to steps."""
    numbers = sorted({int(number) for number in np.linspace(1, max(1, rounds), min(WEIGHED, max(1, rounds)))})
    found = []
    for number in numbers:
        groups = population.groups(number)
        placed = placement([float(sum(group)) for group in groups], ranks)
        loads = [sum(sum(groups[g]) for g in own) for own in placed]
        busiest = int(np.argmax(loads))
        calls = sum(max(groups[g]) for g in placed[busiest])
        clients = sum(map(len, groups)), sum(len(groups[g]) for g in placed[busiest])
        time = shared_cores(loads, cores)
        stretched = calls * time / max(loads[busiest], 1)
        found.append((sum(loads), time, stretched, *clients))
    return Share(*(float(value) for value in np.mean(found, axis=0)))


def shared_cores(loads: Sequence[float], cores: float) -> float:
    """When the last of these loads is done, each on one core at most and all of them sharing `cores` evenly."""
    time, done = 0.0, 0.0
    left = sorted(loads)
    for index, load in enumerate(left):
        active = len(left) - index
        time += (load - done) * max(1.0, active / cores)
        done = load
    return time


def simulated(
    population: Population, ranks: int, rounds: int, noise: float, fixed: float = 1.0, deal: Deal = "largest"
) -> float:
    """The idle share of the ranks over some rounds: 1 − busy time / (ranks × the round's length).

    A group takes (`fixed` + its steps) times exp(σ·z − σ²/2), of mean 1, with σ = `noise`; the same under every deal.
    `largest`: the engine's, cost fitted each round. `arrival`: group after group to rank after rank. `random`: each to
    any. `queue`: whoever is free takes the next, as a server with messages would have it; it knows no cost.
    """
    costs, idle = CostModel(), []
    for number in range(1, rounds + 1):
        groups = population.groups(number)
        steps = [float(sum(group)) for group in groups]
        draws = numpy_generator(population.seed, "simulated seconds", number).standard_normal(len(groups))
        seconds = (fixed + np.array(steps)) * np.exp(noise * draws - noise**2 / 2)
        loads = _loads(deal, costs.cost, steps, seconds, ranks, population.seed, number)
        costs.observe(steps, seconds.tolist())
        idle.append(1 - loads.sum() / (ranks * loads.max()))
    return float(np.mean(idle))


def _loads(
    deal: Deal,
    cost: Callable[[float], float],
    steps: list[float],
    seconds: np.ndarray,
    ranks: int,
    seed: int,
    number: int,
) -> np.ndarray:
    """Seconds of each rank. Only `largest` looks at sizes; arrival is by client number, as a queue would see them."""
    arrival = numpy_generator(seed, "arrival", number).permutation(len(steps))
    loads = np.zeros(ranks)
    if deal == "largest":
        for rank, own in enumerate(placement([cost(each) for each in steps], ranks)):
            loads[rank] = seconds[own].sum()
        return loads
    if deal == "queue":
        free = [(0.0, rank) for rank in range(ranks)]
        for group in arrival:
            load, rank = heapq.heappop(free)
            loads[rank] = load + seconds[group]
            heapq.heappush(free, (loads[rank], rank))
        return loads
    ranks_of = np.arange(len(steps)) % ranks
    if deal == "random":
        ranks_of = numpy_generator(seed, "random deal", number).integers(ranks, size=len(steps))
    np.add.at(loads, ranks_of, seconds[arrival])
    return loads

"""What a training checkpoint holds: trainable weights, buffers, the optimiser's state, by torch.distributed.checkpoint.

One format for every number of ranks. Frozen weights (a language model of billions) are left out: they come from where
they came from the first time.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict


def save_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write the state of a (prepared) model and optimiser into `folder`. Raises a rank's OSError on all of them."""
    with _one_process_is_meant(), _ranks_own_errors():
        dcp.save(_state(model, optimizer), checkpoint_id=folder, no_dist=not dist.is_initialized())


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load what `save_state` wrote, into a model and optimiser built in the same way."""
    state = _state(model, optimizer)
    with _one_process_is_meant(), _ranks_own_errors():
        dcp.load(state, checkpoint_id=folder, no_dist=not dist.is_initialized())
    missing = set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=StateDictOptions(strict=False),  # the frozen weights are not in it
    ).missing_keys
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not trainable & set(missing), f"not restored: {sorted(trainable & set(missing))[:3]}"


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    weights, state = get_state_dict(model, optimizer, options=StateDictOptions(ignore_frozen_params=True))
    return {"model": weights, "optimizer": state}


@contextmanager
def _one_process_is_meant() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


@contextmanager
def _ranks_own_errors() -> Iterator[None]:
    """Raise what happened at a rank, and not torch's report of it, which is no Exception (torch 2.15)."""
    try:
        yield
    except CheckpointException as report:
        error, _ = next(iter(report.failures.values()))
        raise error from report

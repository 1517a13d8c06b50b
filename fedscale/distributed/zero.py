"""DeepSpeed's own checkpoints, and whole weights out of an engine.

An engine goes on from its own files with the same number of ranks and stage only; else they are converted to
DeepSpeed's universal form first, beside them, which any number of ranks reads (DeepSpeed #2898, #3810).
"""

from __future__ import annotations

import io
import shutil
from argparse import Namespace
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fedscale.distributed.mesh import Mesh
from fedscale.errors import UserError

TAG = "zero"
UNIVERSAL = "universal"


def save_engine(engine: Any, folder: Path) -> None:
    """Write the engine's trainable weights, buffers and optimiser state into `folder`; every rank must call it."""
    engine.save_checkpoint(str(folder), tag=TAG, save_latest=False, exclude_frozen_parameters=True)


def load_engine(engine: Any, folder: Path, mesh: Mesh, saved: dict[str, Any]) -> None:
    """Load what `save_engine` wrote, `saved` telling the `world` and `zero_stage` of then.

    Raises UserError when DeepSpeed cannot convert it.
    """
    same = (saved.get("world"), saved.get("zero_stage")) == (mesh.world, engine.zero_optimization_stage())
    tag = TAG
    if not same:
        tag = UNIVERSAL
        problem = _convert(folder) if mesh.is_main else None
        if problem := mesh.broadcast_object(problem):
            raise UserError(
                f"{folder}: written by {saved.get('world')} ranks under ZeRO-{saved.get('zero_stage')}, and DeepSpeed "
                f"cannot convert it for {mesh.world} under ZeRO-{engine.zero_optimization_stage()} ({problem}); "
                "launch as many ranks under the same stage as before"
            )
    engine._config.load_universal_checkpoint = not same
    path, _ = engine.load_checkpoint(str(folder), tag=tag, load_module_strict=False, load_lr_scheduler_states=False)
    assert path is not None, f"DeepSpeed loaded nothing from {folder}"


def _convert(folder: Path) -> str | None:
    """Write the universal form of `folder/TAG` beside it; why it could not, in a line."""
    from deepspeed.checkpoint import ds_to_universal

    target = folder / UNIVERSAL
    shutil.rmtree(target, ignore_errors=True)
    options = Namespace(
        input_folder=str(folder / TAG),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    try:
        with redirect_stdout(io.StringIO()):  # it prints all that it does
            ds_to_universal.main(options)
    except Exception as error:  # whatever it may be, the user is told; its own classes are not documented
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return None


def whole_parameter(parameter: nn.Parameter) -> Tensor:
    """The whole float32 value of an engine's parameter; every rank must call it."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    if parameter.requires_grad and (value := safe_get_full_fp32_param(parameter)) is not None:
        return value.float()
    if hasattr(parameter, "ds_id"):
        with GatheredParameters([parameter]):
            return parameter.detach().float().clone()
    return parameter.detach().float()

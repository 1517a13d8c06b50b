"""The strategy that a launch asks for: one process, DDP, FSDP2 or ZeRO-1/2/3, and the assertion that it is in force.

`accelerate launch` says it by variables. torchrun, srun and deepspeed say nothing; under them `launch=FILE` of the
config reads the same accelerate YAML, or a DeepSpeed JSON. Accelerate falls back without a word: on a CPU it ignores
FSDP and DeepSpeed, and without a GPU it may leave every rank to train alone (PITFALLS D 27, 28).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, MutableMapping
from typing import Any

import yaml

from fedscale.errors import UserError
from fedscale.house import find

TRUE = ("1", "true", "yes")
IN_FORCE = {  # Accelerate's DistributedType of each strategy
    "single": {"NO", "MULTI_GPU", "MULTI_CPU"},  # a launcher may start one process too
    "ddp": {"MULTI_GPU", "MULTI_CPU"},
    "fsdp2": {"FSDP"},
    "deepspeed": {"DEEPSPEED"},
}
PLAIN = ("NO", "MULTI_GPU", "MULTI_CPU")  # an accelerate YAML's types without a plugin


def asked_strategy(environment: Mapping[str, str]) -> str:
    """What the launcher asked for, by the variables that `accelerate launch` and torchrun set: a key of IN_FORCE."""
    for strategy, variable in (("deepspeed", "ACCELERATE_USE_DEEPSPEED"), ("fsdp2", "ACCELERATE_USE_FSDP")):
        if environment.get(variable, "false").lower() in TRUE:
            return strategy
    return "ddp" if int(environment.get("WORLD_SIZE", "1")) > 1 else "single"


def check_strategy(asked: str, world: int, found: str, processes: int) -> None:
    """Raises UserError unless the distributed type and the number of processes are those asked for."""
    if found not in IN_FORCE[asked]:
        raise UserError(
            f"accelerate: {asked} was asked for, but {found} is in force; "
            "launch it on the device that this strategy needs, or ask for another one in the launch config"
        )
    if processes != world:
        raise UserError(f"accelerate: {world} processes were launched, but it sees {processes}; check the backend")


def read_launch_file(name: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables that `accelerate launch --config_file` would set for the strategy of this file.

    A JSON is a DeepSpeed configuration, a YAML one of accelerate's, of which the strategy alone is taken (how many
    processes there are is the launcher's to say). Raises UserError for a file without a strategy, and where the
    launcher has set another one already.
    """
    path = find(name, "launch file")
    try:
        content = json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"launch={name}: cannot be read ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict):
        raise UserError(f"launch={name}: expected an accelerate YAML or a DeepSpeed JSON")
    wanted = _deepspeed(str(path)) if path.suffix == ".json" else _of_yaml(name, content)
    for variable, value in wanted.items():
        if environment.get(variable, value).lower() != value.lower():
            raise UserError(
                f"launch={name}: wants {variable}={value}, the launcher has set {environment[variable]}; "
                "leave launch= out, or launch without its own config file"
            )
    environment.update(wanted)


def _deepspeed(config_file: str) -> dict[str, str]:
    return {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": config_file}


def _of_yaml(name: str, content: dict[str, Any]) -> dict[str, str]:
    kind = str(content.get("distributed_type", "")).upper()
    if kind in PLAIN:
        return {}
    if kind == "FSDP":
        settings = content.get("fsdp_config") or {}
        variables = {key.upper(): str(value).lower() for key, value in settings.items() if value is not None}
        return {"ACCELERATE_USE_FSDP": "true", **variables}
    if kind == "DEEPSPEED":
        settings = content.get("deepspeed_config") or {}
        if "deepspeed_config_file" in settings:
            return _deepspeed(str(find(settings["deepspeed_config_file"], "DeepSpeed configuration")))
        named = {  # as accelerate's launcher names them
            "zero_stage": "ACCELERATE_DEEPSPEED_ZERO_STAGE",
            "offload_optimizer_device": "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
            "offload_param_device": "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE",
            "zero3_init_flag": "ACCELERATE_DEEPSPEED_ZERO3_INIT",
        }
        variables = {variable: str(settings[key]).lower() for key, variable in named.items() if key in settings}
        return {"ACCELERATE_USE_DEEPSPEED": "true", **variables}
    raise UserError(f"launch={name}: distributed_type is {kind or 'missing'}; expected FSDP, DEEPSPEED or MULTI_GPU")

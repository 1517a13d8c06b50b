"""What a launch asks for: the launcher's variables, or a launch file that says the same."""

import json

import pytest

from fedscale.distributed.strategy import asked_strategy, check_strategy, read_launch_file
from fedscale.errors import UserError


@pytest.mark.parametrize(
    ("environment", "strategy"),
    [
        ({}, "single"),
        ({"WORLD_SIZE": "2"}, "ddp"),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}, "fsdp2"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "deepspeed"),
        ({"ACCELERATE_USE_FSDP": "false"}, "single"),
    ],
)
def test_the_launchers_variables_say_what_is_asked(environment, strategy):
    assert asked_strategy(environment) == strategy


def test_a_silent_fall_back_is_an_error():
    check_strategy("ddp", 2, "MULTI_CPU", 2)
    with pytest.raises(UserError, match="fsdp2 was asked for, but MULTI_CPU is in force"):
        check_strategy("fsdp2", 2, "MULTI_CPU", 2)
    with pytest.raises(UserError, match="ddp was asked for, but NO is in force"):
        check_strategy("ddp", 2, "NO", 1)
    with pytest.raises(UserError, match="2 processes were launched, but it sees 1"):
        check_strategy("deepspeed", 2, "DEEPSPEED", 1)


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("accelerate/single.yaml", "ddp"),
        ("accelerate/ddp.yaml", "ddp"),
        ("accelerate/fsdp2.yaml", "fsdp2"),
        *[(f"accelerate/zero{stage}.yaml", "deepspeed") for stage in (1, 2, 3)],
        *[(f"deepspeed/{name}.json", "deepspeed") for name in ("zero1", "zero2", "zero3", "zero3_offload")],
    ],
)
def test_every_launch_file_of_the_project_names_its_strategy_and_no_machine(name, strategy):
    environment = {"WORLD_SIZE": "2"}
    read_launch_file(f"launch/{name}", environment)
    assert asked_strategy(environment) == strategy
    assert "auto" not in environment.values() and environment["WORLD_SIZE"] == "2"


def test_the_yaml_gives_the_variables_that_accelerates_launcher_gives():
    environment: dict[str, str] = {}
    read_launch_file("launch/accelerate/fsdp2.yaml", environment)
    assert environment["FSDP_VERSION"] == "2" and environment["FSDP_RESHARD_AFTER_FORWARD"] == "true"
    environment = {}
    read_launch_file("launch/accelerate/zero3.yaml", environment)
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"


def test_a_launch_file_that_says_otherwise_than_the_launcher_is_refused():
    with pytest.raises(UserError, match=r"wants ACCELERATE_USE_FSDP=true, the launcher has set false"):
        read_launch_file("launch/accelerate/fsdp2.yaml", {"ACCELERATE_USE_FSDP": "false"})


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "{", "cannot be read"),
        ("a.yaml", "- 1", "expected an accelerate YAML or a DeepSpeed JSON"),
        ("a.yaml", "distributed_type: TPU", "distributed_type is TPU; expected"),
        ("a.yaml", "x: 1", "distributed_type is missing; expected"),
    ],
)
def test_a_file_without_a_strategy_is_one_clear_line(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said):
        read_launch_file(str(tmp_path / name), {})


def test_a_deepspeed_file_named_by_a_yaml_is_found(tmp_path):
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    file = tmp_path / "a.yaml"
    file.write_text(
        f"distributed_type: DEEPSPEED\ndeepspeed_config: {{deepspeed_config_file: {tmp_path / 'zero.json'}}}"
    )
    environment: dict[str, str] = {}
    read_launch_file(str(file), environment)
    assert environment["ACCELERATE_DEEPSPEED_CONFIG_FILE"] == str(tmp_path / "zero.json")

import pytest

from fedscale.distributed.launch import Worker, this_worker
from fedscale.errors import UserError

ARRAY = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_JOB_ID": "9", "SLURM_ARRAY_TASK_COUNT": "4"}


@pytest.mark.parametrize(
    ("environment", "worker"),
    [
        ({}, Worker()),
        ({"RANK": "1", "WORLD_SIZE": "3"}, Worker(1, 3, None)),
        ({"RANK": "1", "WORLD_SIZE": "3", "TORCHELASTIC_RUN_ID": "none"}, Worker(1, 3, None)),
        ({"RANK": "1", "WORLD_SIZE": "3", "TORCHELASTIC_RUN_ID": "abc"}, Worker(1, 3, "torchrun-abc")),
        (
            {"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "5"},
            Worker(2, 4, "slurm-5-0"),
        ),
        # sbatch's own script: SLURM_NTASKS is what the job may start, not what runs.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "5"}, Worker()),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "3"}, Worker(3, 4, "slurm-7")),
        (
            {**ARRAY, "SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_STEP": "2"},
            Worker(2, 4, "slurm-7"),
        ),
        # --array=1,5,9: three tasks at positions 0, 4 and 8 of nine.
        (
            {**ARRAY, "SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "9"},
            Worker(8, 9, "slurm-7", gaps=True),
        ),
        (
            {**ARRAY, "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_MAX": "3", "RANK": "1", "WORLD_SIZE": "2"},
            Worker(3, 8, "slurm-7"),
        ),
    ],
)
def test_every_launcher_tells_the_same_thing(environment, worker):
    assert this_worker(environment) == worker


@pytest.mark.parametrize("environment", [{"RANK": "3", "WORLD_SIZE": "3"}, {"RANK": "x", "WORLD_SIZE": "3"}])
def test_numbers_that_are_none_are_refused_by_name(environment):
    with pytest.raises(UserError, match="RANK"):
        this_worker(environment)

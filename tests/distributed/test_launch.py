import pytest

from fedscale.distributed.launch import Place, Worker, sharing, slurm_hosts, this_place, this_worker
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


MEETING = {"MASTER_ADDR": "b", "MASTER_PORT": "7"}
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "6", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", **MEETING}
STEP = {
    "SLURM_JOB_ID": "100", "SLURM_STEP_ID": "2", "SLURM_PROCID": "5", "SLURM_NTASKS": "7", "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2", "SLURM_STEP_NODELIST": "n[08-10]", "SLURM_STEP_TASKS_PER_NODE": "2(x2),3",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, Place()),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Place()),
        (TORCHRUN, Place(5, 6, 1, 2, "b", 7)),
        (
            {**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "True"},
            Place(5, 6, 1, 2, "b", 7, hosted=True),
        ),
        # deepspeed's name for the ranks of a host
        (
            {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "2", **MEETING},
            Place(1, 2, 1, 2, "b", 7),
        ),
        # torchrun inside a Slurm step: its ranks count, not Slurm's tasks
        ({**STEP, **TORCHRUN}, Place(5, 6, 1, 2, "b", 7)),
        (STEP, Place(5, 7, 1, 3, "n08", 16_602)),
        ({**STEP, **MEETING}, Place(5, 7, 1, 3, "b", 7)),
        # the shell of salloc: the job may start 7 tasks, this step is one
        ({**STEP, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, Place()),
        # sbatch's own script
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "5"}, Place()),
        # a task of a job array is a run of its own
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "3"}, Place()),
    ],
)
def test_every_launcher_says_where_its_ranks_meet(environment, place):
    assert this_place(environment) == place


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({"RANK": "3", "WORLD_SIZE": "3", **MEETING}, "RANK"),
        ({"RANK": "1", "WORLD_SIZE": "3"}, "MASTER_ADDR"),
        ({"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "b"}, "MASTER_PORT"),
        ({**STEP, "SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST"),
    ],
)
def test_ranks_that_cannot_meet_are_refused_by_the_variable(environment, names):
    with pytest.raises(UserError, match=names):
        this_place(environment)


ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True"}


def test_one_process_that_accelerate_was_to_start_with_others_is_refused():
    for place in (this_place, this_worker):
        with pytest.raises(UserError, match=r"several processes .* alone; .*launch/accelerate/ddp\.yaml"):
            place({**ACCELERATE, **MEETING})
    assert this_place(ACCELERATE) == Place(), "one was asked for"
    assert this_place({**ACCELERATE, **MEETING, "RANK": "0", "WORLD_SIZE": "1"}) == Place()
    assert this_place({**ACCELERATE, **STEP, **MEETING}).world == 7, "srun's tasks are the ranks"


@pytest.mark.parametrize(
    ("nodes", "hosts"),
    [
        ("", []),
        ("localhost", ["localhost"]),
        ("node[1-3,7],other", ["node1", "node2", "node3", "node7", "other"]),
        ("n[08-10],gpu-2", ["n08", "n09", "n10", "gpu-2"]),
        ("rack[1-2]n[1,3]x", ["rack1n1x", "rack1n3x", "rack2n1x", "rack2n3x"]),
    ],
)
def test_a_node_list_is_its_hosts_in_order(nodes, hosts):
    assert slurm_hosts(nodes) == hosts


@pytest.mark.parametrize(
    ("environment", "cores", "ranks"),
    [
        ({}, 8, 1),
        (TORCHRUN, 8, 2),
        ({**STEP, "SLURM_CPUS_ON_NODE": "8"}, 8, 3),  # every task may run on all eight
        ({**STEP, "SLURM_CPUS_ON_NODE": "24"}, 8, 1),  # bound: eight of its own
        ({**STEP, "SLURM_CPUS_ON_NODE": "24", **TORCHRUN}, 8, 2),
    ],
)
def test_ranks_share_the_cores_that_srun_does_not_bind(environment, cores, ranks):
    assert sharing(cores, environment) == ranks


@pytest.mark.parametrize(("gpus", "ranks"), [(8, 3), (2, 1)])
def test_ranks_share_the_gpus_that_srun_does_not_bind(gpus, ranks):
    assert sharing(gpus, {**STEP, "SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_ON_NODE": "3"}, of="GPUS") == ranks

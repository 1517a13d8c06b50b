# One task a node: `accelerate launch`, which starts the ranks of its node under the strategy of its config file. A
# task's shell knows the number of its node, SLURM_NODEID; this one does not.
launch_ranks() {
    __PYTHON__ -m fedscale.cluster.launcher accelerate.commands.launch --config_file __STRATEGY__ \
        --num_machines "$SLURM_JOB_NUM_NODES" --num_processes $((SLURM_JOB_NUM_NODES * __RANKS__)) \
        --machine_rank "$SLURM_NODEID" --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT" \
        --same_network --deepspeed_multinode_launcher standard --dynamo_backend no \
        --num_cpu_threads_per_process __THREADS__ --module fedscale "$@"
}

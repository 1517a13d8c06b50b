# One task a node: the deepspeed launcher, told by --no_ssh to start the ranks of its own node alone. It takes the nodes
# from a file. A task's shell knows the number of its node, SLURM_NODEID; this one does not.
hosts=__SCRIPTS__/hosts-$job
printf '%s slots=__RANKS__\n' "${nodes[@]}" >"$hosts"
export hosts
launch_ranks() {
    __PYTHON__ -m deepspeed.launcher.runner --hostfile "$hosts" --no_ssh --node_rank "$SLURM_NODEID" \
        --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" --module fedscale "$@"
}

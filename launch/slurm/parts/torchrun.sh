# One task a node: torchrun's agent, which starts the ranks of its node and, when one of them dies, all ranks of all nodes
# again, from the last checkpoint. The agents meet at the first node's, which is told that it is the host: its own name
# may lead to another address than Slurm's. A task's shell knows the number of its node, SLURM_NODEID; this one does not.
# Every start has a meeting place of its own, at whichever node is the first then; without this line the other nodes would
# keep to that of the first start.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
launch_ranks() {
    __PYTHON__ -m fedscale.cluster.launcher torch.distributed.run \
        --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node=__RANKS__ --max-restarts=__RESTARTS__ \
        --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT" \
        --rdzv-conf="is_host=$((SLURM_NODEID == 0))" -m fedscale "$@"
}

# Where the ranks meet: the first node, under the address that Slurm has for it, at a port of this job's own below those
# that the kernel hands out.
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_ADDR=$(scontrol show node "${nodes[0]}" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
MASTER_PORT=$((15000 + SLURM_JOB_ID % 16000))
export MASTER_ADDR MASTER_PORT

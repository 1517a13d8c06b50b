# Shards and hub weights are copied to a disk of each node and read there; what it holds already is left alone.
local_disk=__LOCAL__
run srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    __PYTHON__ -m fedscale prepare __CONFIG__ --to "$local_disk"
if [ -d "$local_disk/hub" ]; then export HF_HUB_CACHE=$local_disk/hub; fi

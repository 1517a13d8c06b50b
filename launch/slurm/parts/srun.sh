# One task a rank: srun starts them all, and Slurm's own variables tell each which it is.
launch_ranks() {
    __PYTHON__ -m fedscale "$@"
}

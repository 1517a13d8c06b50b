# The ranks, on all nodes. A task that fails ends the others at once (they would wait for it until their timeout); one
# that is done does not, because rank 0 has things of its own to finish.
export -f launch_ranks
run srun --kill-on-bad-exit=1 --wait=0 bash -c 'launch_ranks "$@"' bash __STAGE__ __CONFIG__ __WORDS__

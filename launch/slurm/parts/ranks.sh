# The ranks, on all nodes. A task that fails ends the others at once (they would wait for it until their timeout); one
# that is done does not, because rank 0 has things of its own to finish. srun's exit code is the highest, be it that of a
# task which it ended because of another; so each task notes its own code, and the first one counts.
codes=__SCRIPTS__/codes-$job
rm -f "$codes"
start_task() {
    trap : TERM # the launcher is told too
    local code=0
    launch_ranks "$@" || code=$?
    if [ "$code" -ne 0 ]; then echo "$code" >>"$codes"; fi
    exit "$code"
}
export codes
export -f launch_ranks start_task
run srun --kill-on-bad-exit=1 --wait=0 bash -c 'start_task "$@"' bash __STAGE__ __CONFIG__ __WORDS__

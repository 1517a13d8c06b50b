# Any unforeseen failure ends the job.
set -euo pipefail

# This job by the name that Slurm's commands have for it; an array's number alone would mean all its tasks.
job=$SLURM_JOB_ID
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi

# Threads of a process: without the number, each library of each rank takes all cores.
export OMP_NUM_THREADS=__THREADS__
# srun does not take the cores for a task over from the job unless it is told.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi
# A process that crashes says where. A torchrun agent that is told to end gives its ranks this many seconds to save.
export PYTHONFAULTHANDLER=1 TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100

# For the log: what runs, and where. Versions, commit and config are in the folder of this script.
echo "$(date -Is) job $job, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST:" __RECORD__

# TERM is handed on to the steps, on all nodes. (srun itself would take it for an order to kill its step.)
told=no
trap 'told=yes; scancel --signal=TERM "$job" || true' TERM

# Run a step, and end the job when it fails, with the code of the step or of the first task to fail, where tasks note it.
# It runs in the background, because bash takes notice of a signal only while it waits. The signal ends the waiting, not
# the step, which saves its state now and is waited for again.
codes=/dev/null
run() {
    if [ "$told" = yes ]; then end_job 75; fi # between two steps
    local status=0
    "$@" &
    wait "$!" || status=$?
    while kill -0 "$!" 2>/dev/null; do
        status=0
        wait "$!" || status=$?
    done
    if [ -s "$codes" ]; then read -r status <"$codes"; fi
    if [ "$status" -ne 0 ]; then end_job "$status"; fi
}

# End the job with a step's exit code. 75: stopped by a signal with the state saved. The deepspeed launcher makes 1 of it,
# so that any failure is taken for it after a signal, and in a job whose nodes Slurm takes for another one (of which it
# tells the steps alone). Above 128: killed (memory, a lost card), to be tried again three times.
end_job() {
    if [ "$1" -eq 75 ] || [ "$told" = yes ] || scontrol show job "$job" | grep -q 'PreemptTime=[0-9]' ||
        { [ "$1" -gt 128 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 3 ]; }; then
        echo "$(date -Is) job $job ended with $1 and is started again"
        scontrol requeue "$job"
    fi
    exit "$1"
}

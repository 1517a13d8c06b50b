# What squeue shows.
#SBATCH --job-name=__NAME__
# Where the relative paths of the config start.
#SBATCH --chdir=__FOLDER__
# A log for each job (%j) or task of an array (%A_%a), which one that is started again goes on with.
#SBATCH --output=__LOG__
#SBATCH --open-mode=append
# Two minutes before the end of its time this script (B:) is told, so that the ranks save their state.
#SBATCH --signal=B:TERM@120
# The job may be started again: by the last lines below, and by Slurm after a preemption or a node's failure.
#SBATCH --requeue
# How many nodes, tasks on each (a launcher that starts its node's ranks is one), and cores for a task.
#SBATCH --nodes=__NODES__
#SBATCH --ntasks-per-node=__TASKS__
#SBATCH --cpus-per-task=__CPUS__
# GPUs, time, partition, account and what else the command line said.
#SBATCH __OPTIONS__

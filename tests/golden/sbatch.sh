#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=64
#SBATCH --gpus-per-node=8
#SBATCH --job-name=mocov3-1121-0907
#SBATCH --mem=480G
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/mocov3-1121-0907/slurm/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --reservation=night
#SBATCH --signal=USR2@180
#SBATCH --time=1440

# setup
module load cuda
export DIST_SSL_RUN=/shared/runs/mocov3-1121-0907
for path in "$DIST_SSL_RUN" "$DIST_SSL_RUN/code" "$DIST_SSL_RUN/code/dist_ssl" "$DIST_SSL_RUN/code/launch" "$DIST_SSL_RUN/slurm"; do [ -O "$path" ] || { echo "$path is not yours any more: another user has replaced it."; exit 2; }; done
export PYTHONSAFEPATH=1 PYTHONPATH=$DIST_SSL_RUN/code${PYTHONPATH:+:$PYTHONPATH}
DIST_SSL_ATTEMPT=$(/env/bin/python -m launch.prologue "$DIST_SSL_RUN") || exit $?
export DIST_SSL_ATTEMPT
srun() { command srun "$@" & local srun=$!; /env/bin/python -m launch.srun_guard "$DIST_SSL_RUN" "$DIST_SSL_ATTEMPT" "$srun" & local guard=$! code; wait "$srun"; code=$?; kill "$guard" 2>/dev/null; wait "$guard" 2>/dev/null; return $code; }

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/runs/mocov3-1121-0907/slurm/%j_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=64 /env/bin/python -u -m submitit.core._submit /shared/runs/mocov3-1121-0907/slurm


# teardown
code=$?
/env/bin/python -m launch.epilogue "$DIST_SSL_RUN" "$DIST_SSL_ATTEMPT" "$code"
exit $code

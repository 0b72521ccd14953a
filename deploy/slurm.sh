#!/usr/bin/env bash
# A sweep on a Slurm cluster. From the project's folder, on a file system that all nodes share:
#
#   sbatch deploy/slurm.sh depth --set data.root=data
#   sbatch --nodes=8 --gpus-per-node=4 --time=12:00:00 deploy/slurm.sh imagenet --set data.root=/data/imagenet
#
# Everything after the script's name goes to `hiddenweights sweeps launch`. If the job is preempted, runs out of
# time or loses a node, Slurm queues it again (--requeue), and the sweep resumes from the store.
#
# YOURS TO SET: nodes, time, GPUs, partition. Options of sbatch on the command line override these lines.
#SBATCH --job-name=hidden-weights
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#SBATCH --output=hidden-weights-%j.log
set -euo pipefail

bin="$SLURM_SUBMIT_DIR/.venv/bin" # where `make` puts the environment
[ -x "$bin/hiddenweights" ] && export PATH="$bin:$PATH"
export HIDDENWEIGHTS_STORE="${HIDDENWEIGHTS_STORE:-$SLURM_SUBMIT_DIR/runs}"

# Only who knows this token may run code on the cluster that Ray starts. srun hands it to the other nodes.
export RAY_AUTH_MODE=token
[ -s ~/.ray/auth_token ] || (umask 077 && ray get-auth-token --generate >/dev/null)
chmod 600 ~/.ray/auth_token
RAY_AUTH_TOKEN=$(<~/.ray/auth_token)
export RAY_AUTH_TOKEN

# The first node's address, not its name: Ray does not ask every source of names that the system asks.
head=$(getent ahostsv4 "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" | awk '{print $1; exit}')
port=$((20000 + SLURM_JOB_ID % 10000)) # jobs on the same node do not meet
# The job's status is the launch's. Ray's own says nothing: its nodes wait a minute for the first one, which has
# stopped, and so has no part in --wait, after which srun kills them; a node that was lost has forgotten its task.
status=$(mktemp)
trap 'rm "$status"' EXIT
srun --wait=5 ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus "$SLURM_CPUS_ON_NODE" --disable-usage-stats -- \
  bash -c 'hiddenweights sweeps launch "${@:2}"; echo $? >"$1"' launch "$status" "$@" --address "$head:$port" &

# Two minutes before the time is up Slurm sends USR1: queue the job again. The cells in hand have checkpoints.
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1
wait "$!" || true
exit "$(grep . "$status" || echo 1)" # 1: there was no launch, or it was interrupted

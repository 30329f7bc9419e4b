#!/usr/bin/env bash
# Submit the whole chain: an array that builds the store, a job that publishes it, and training on it. Arguments before --
# are keys of `torchcell-cache preprocess`, those after it keys of the training (rank.sh); without -- nothing is trained.
#
#   ROOT=/shared/stores/ecoli RUN_DIR=/shared/runs/first NODES=2 RANKS_PER_NODE=4 GPUS_PER_NODE=4 \
#     slurm/submit.sh source=ecoli source.num_samples=20000 -- epochs=20
#
# Prints one line per job with its id. The same line again is safe: what is built stays, training goes on.
set -euo pipefail

# Parameters; each can be given in the environment instead, as can those of the templates and SBATCH_PARTITION,
# SBATCH_ACCOUNT, SBATCH_TIMELIMIT and the like for all jobs.
ROOT="${ROOT:?ROOT=/path/of/the/store is needed}"
TASKS="${TASKS:-4}"                      # shares of the build; 1 builds in one job without an array
CPUS_PER_TASK="${CPUS_PER_TASK:-2}"      # processors of each task of the build
NODES="${NODES:-2}"                      # of the training
RANKS_PER_NODE="${RANKS_PER_NODE:-1}"    # processes on each of them
GPUS_PER_NODE="${GPUS_PER_NODE:-0}"      # 0: train on processors
CPUS_PER_RANK="${CPUS_PER_RANK:-2}"      # processors of each of them
LOGS="${LOGS:-slurm-logs}"               # directory of the jobs' logs
PROJECT="${PROJECT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}"

build=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  build+=("$1")
  shift
done
train=no
if [ $# -gt 0 ]; then
  train=yes
  shift
  RUN_DIR="${RUN_DIR:?RUN_DIR=/path/of/this/run is needed, on storage that all nodes share}"
  export RUN_DIR
fi
mkdir -p "$LOGS" "$(dirname "$ROOT")"
export ROOT TASKS PROJECT

# Submit one job; the log's name is a pattern of sbatch, in which a percent sign of a path is written twice.
submit() {
  local log=$1 id
  shift
  # A failure in here does not end the script by itself: in $(...) bash forgets set -e.
  id="$(sbatch --parsable --output="${LOGS//%/%%}/$log.out" "$@")" || return 1
  printf '%s\n' "${id%%;*}"  # with several clusters, ID;CLUSTER
}

if [ "$TASKS" -gt 1 ]; then
  # A cluster takes arrays of a certain size; more tasks go into several arrays, which count from TASK_OFFSET on.
  limit="$(scontrol show config 2>/dev/null | sed -n 's/^MaxArraySize *= *\([0-9]*\).*/\1/p' || true)"
  [ "${limit:-0}" -gt 1 ] || limit=1001  # SLURM's own default
  arrays=()
  for ((first = 0; first < TASKS; first += limit)); do
    last=$((first + limit < TASKS ? limit - 1 : TASKS - first - 1))
    array="$(TASK_OFFSET=$first submit '%x-%A_%a' --array="0-$last" --cpus-per-task="$CPUS_PER_TASK" \
      "$PROJECT/slurm/preprocess_array.slurm" "${build[@]}")"
    if [ "$TASKS" -le "$limit" ]; then
      echo "build     $array  ($TASKS tasks)"
    else
      echo "build     $array  (tasks $first-$((first + last)) of $TASKS: arrays have at most $limit here)"
    fi
    arrays+=("$array")
  done
  after="$(IFS=: && printf %s "${arrays[*]}")"
  # After the arrays however they ended: it is this job that says what is missing.
  store="$(submit '%x-%j' --dependency="afterany:$after" "$PROJECT/slurm/finalize.slurm" "${build[@]}")"
  echo "finalize  $store  after ${arrays[*]}"
else
  store="$(submit '%x-%j' --cpus-per-task="$CPUS_PER_TASK" "$PROJECT/slurm/preprocess.slurm" "${build[@]}")"
  echo "build     $store"
fi
if [ "$train" = yes ]; then
  resources=(--nodes="$NODES" --ntasks-per-node="$RANKS_PER_NODE" --cpus-per-task="$CPUS_PER_RANK")
  [ "$GPUS_PER_NODE" -eq 0 ] || resources+=(--gpus-per-node="$GPUS_PER_NODE")
  job="$(submit '%x-%j' --dependency="afterok:$store" --kill-on-invalid-dep=yes "${resources[@]}" \
    "$PROJECT/slurm/train_ddp.slurm" "$@")"
  echo "train     $job  after $store"
fi

# Read by every template: the Python environment and what the jobs have in common. Not a job of its own.
# shellcheck shell=bash

# Parameters; each can be given in the environment instead.
VENV="${VENV:-}"                  # a virtual environment to activate; empty: none
MODULES="${MODULES:-}"            # environment modules to load first, separated by spaces; empty: none
PYTHON="${PYTHON:-python3}"       # the interpreter, after that
MAX_REQUEUES="${MAX_REQUEUES:-100}"  # how often an interrupted job puts itself back into the queue

export PYTHONUNBUFFERED=1
export PYTHONPATH="$PROJECT${PYTHONPATH:+:$PYTHONPATH}"
# From SLURM 22.05 on a step no longer inherits the job's --cpus-per-task by itself.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}"

# The number of an array's last task is that of the whole array, so a task is addressed by both.
JOB="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"
JOB="${JOB:-${SLURM_JOB_ID:?this is a batch script: submit it with sbatch}}"

say() { printf '%s %s\n' "$(date '+%F %T')" "$*"; }

job_state() {
  scontrol --oneliner show job "$JOB" | sed -n 's/.* JobState=\([A-Z_]*\).*/\1/p'
}

# SLURM signals job steps; some sites and `scancel --batch` only this script, which passes it on to its step. A job that is
# being ended needs that no more, and scancel would try for a minute, long enough to meet the job's next start.
stopped=0
pass_on() {
  stopped=1
  if [ "$(job_state)" = RUNNING ]; then
    timeout 3 scancel --quiet --signal=TERM "$JOB" || true
  fi
}
trap pass_on TERM USR1

if [ -n "$MODULES" ]; then
  read -r -a wanted <<<"$MODULES"
  module load "${wanted[@]}"
fi
if [ -n "$VENV" ]; then
  # shellcheck disable=SC1091
  source "$VENV/bin/activate"
fi

# Whether KEY is among arguments KEY=value: then what the job would say of it itself is left out.
is_given() {
  local key="$1" argument
  shift
  for argument in "$@"; do
    [[ "$argument" == "$key="* ]] && return 0
  done
  return 1
}

# A job step; waits for it also while signals come in, and returns its status.
step() {
  local status pid
  [ "$stopped" -eq 0 ] || return 75
  srun "$@" &
  pid=$!
  while :; do
    status=0
    wait "$pid" || status=$?
    [ "$stopped" -eq 1 ] || return "$status"
    stopped=0  # that was the signal; the step is still to end
  done
}

# End the job. 75 says: interrupted, the same command goes on; so the job goes back into the queue - unless SLURM does that
# itself, or somebody has cancelled the job: then it no longer runs.
finish() {
  local status=$1 state
  state="$(job_state)" || state=unknown
  if [ "$status" -ne 75 ]; then
    say "job $JOB ended with exit status $status"
  elif [ "$state" != RUNNING ]; then
    say "job $JOB was interrupted and is $state now"
  elif [ "${SLURM_RESTART_COUNT:-0}" -ge "$MAX_REQUEUES" ]; then
    say "job $JOB was interrupted and has been requeued ${SLURM_RESTART_COUNT:-0} times: it stays out of the queue"
  else
    say "job $JOB was interrupted: back into the queue"
    scontrol requeue "$JOB" || say "SLURM refused; submit job $JOB again"
  fi
  exit "$status"
}

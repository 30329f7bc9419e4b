#!/usr/bin/env bash
# One rank of train_ddp.slurm, which starts it with srun: tells torch.distributed what SLURM knows.
set -euo pipefail

export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID"
export MASTER_ADDR="${MASTER_ADDR:-$SLURM_LAUNCH_NODE_IPADDR}"

# A value as Hydra reads it, whatever characters it holds.
hydra() { printf "%s='%s'" "$1" "${2//\'/\\\'}"; }

# The keys that the job itself sets; TRAIN is the script, by default train.py beside slurm/.
arguments=("$(hydra root "$ROOT")" "$(hydra run_dir "$RUN_DIR")" "checkpoint_every=$CHECKPOINT_EVERY")
if [ -n "$STAGE_DIR" ]; then
  arguments+=("$(hydra stage "${STAGE_DIR//%N/$SLURMD_NODENAME}")")
fi
# Not a child of this shell: signals and the exit status are the rank's own.
exec "$PYTHON" "${TRAIN:-$PROJECT/train.py}" "${arguments[@]}" "$@"

"""Run by ``torchrun`` in test_train.py: the three modes one after the other in one process group, on every rank."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from test_train import MODES, configured

from experiments.train.train import run

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    for mode in MODES:
        run(configured(Path(sys.argv[1]), mode=mode))
    # For a run that goes on with another number of ranks, in either kind of loader.
    for mode in MODES[1:]:
        run(
            configured(
                Path(sys.argv[1]), mode=mode, run_dir=f"fewer-{mode}", stop_after=2, log_samples="true"
            )
        )
    torch.distributed.destroy_process_group()

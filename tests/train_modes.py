"""Run by ``torchrun`` in test_train.py: the three modes one after the other in one process group, on every rank."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from test_train import MODES, configured

from experiments.train.train import run

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    for mode in MODES:
        run(configured(Path(sys.argv[1]), mode=mode))
    torch.distributed.destroy_process_group()

"""Train: ``python experiments/006-kuzmin-tmi/scripts/train.py on_the_fly|preprocessed|shared [key=value ...]``.

Also under torchrun. Settings are those of ``experiments/train/conf/config.yaml`` and of ``conf/`` beside this folder.
"""

from __future__ import annotations

import sys

from arguments import hydra_arguments

from experiments.train.preemption import listen

if __name__ == "__main__":
    listen()  # before the seconds that importing torch takes
    sys.argv[1:] = hydra_arguments(sys.argv[1:])
    from experiments.train.train import main

    main()

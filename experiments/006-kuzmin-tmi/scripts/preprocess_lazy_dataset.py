"""Build the store: ``python experiments/006-kuzmin-tmi/scripts/preprocess_lazy_dataset.py [shared] [key=value ...]``.

The same settings as for training, so that the store is where training looks for it. ``data=yeast_database`` takes the
knock-outs from the graph database. An interrupted build goes on with the same command.
"""

from __future__ import annotations

import sys

import hydra
from arguments import TRAIN_CONF, hydra_arguments
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

import torchcell_cache as tc
from torchcell_cache.errors import CacheError


@hydra.main(config_path=str(TRAIN_CONF), config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Read the source, process every sample, publish the store."""
    try:
        preprocess(cfg)
    except (CacheError, InstantiationException) as error:
        # Hydra wraps what a source raises.
        cause = error if isinstance(error, CacheError) else error.__cause__
        if not isinstance(cause, CacheError):
            raise
        print(f"error: {cause}", file=sys.stderr)
        sys.exit(cause.code)


def preprocess(cfg: DictConfig) -> None:
    if cfg.progress:
        print("reading base graph and knock-outs, some seconds", file=sys.stderr, flush=True)
    dataset = tc.build(
        cfg.root,
        source=instantiate(cfg.data.source),
        processor=tc.LazySubgraphRepresentation(),
        storage=cfg.storage,
        progress=bool(cfg.progress),
        **cfg.build,
    )
    print(
        f"{cfg.root}: {len(dataset):,} samples as '{dataset.storage}', content digest {dataset.content_digest}"
    )


if __name__ == "__main__":
    sys.argv[1:] = hydra_arguments(sys.argv[1:], "shared")
    main()

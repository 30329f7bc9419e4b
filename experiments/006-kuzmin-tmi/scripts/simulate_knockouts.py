"""Make a table of knock-outs like a trigenic screen's, with growth by flux balance analysis on yeast-GEM.

    python experiments/006-kuzmin-tmi/scripts/simulate_knockouts.py FOLDER [query_pairs=150] [array=400] [seed=0]

Every gene of the model alone; ``query_pairs`` random pairs, each with each of ``array`` random genes; and every double
that these triples contain, so that all interaction scores are defined. Needs ``pip install ".[demo]"``. The draws are
not those of the table that the figures in the README come from.
"""

from __future__ import annotations

import gzip
import itertools
import os
import sys
import time
from pathlib import Path

import numpy as np

from torchcell_cache.errors import CacheError, SettingError
from torchcell_cache.sources.ecoli import GrowthSolver
from torchcell_cache.sources.metabolic import model_rules

KEYS = {"query_pairs": 150, "array": 400, "seed": 0}


def design(num_genes: int, query_pairs: int, array: int, seed: int) -> list[tuple[int, ...]]:
    """Knock-outs as ascending positions of genes: singles, doubles, triples."""
    rng = np.random.default_rng(seed)
    pairs: set[tuple[int, ...]] = set()
    while len(pairs) < query_pairs:
        pairs.add(tuple(sorted(rng.choice(num_genes, 2, replace=False).tolist())))
    others = rng.choice(num_genes, array, replace=False).tolist()
    triples = {tuple(sorted({*pair, gene})) for pair in sorted(pairs) for gene in others}
    triples = {triple for triple in triples if len(triple) == 3}
    doubles = pairs | {double for triple in triples for double in itertools.combinations(triple, 2)}
    return [*((gene,) for gene in range(num_genes)), *sorted(doubles), *sorted(triples)]


def simulate(folder: Path, query_pairs: int, array: int, seed: int) -> Path:
    """Write ``fba_knockouts.tsv.gz``."""
    try:
        from cobra.io import from_yaml
    except ImportError:
        raise SettingError("flux balance analysis needs cobra", fix="pip install '.[demo]'") from None
    path = folder / "fba_knockouts.tsv.gz"
    models = sorted(folder.glob("yeast-GEM*.yml.gz"))
    if path.exists() or len(models) != 1:
        raise SettingError(
            f"{path} is there already"
            if path.exists()
            else f"{folder} holds {len(models)} yeast-GEM*.yml.gz, expected 1",
            fix="remove it first" if path.exists() else "run download.py first",
        )
    print("reading the model with cobra, about half a minute", file=sys.stderr)
    model = from_yaml(gzip.decompress(models[0].read_bytes()).decode())
    model.solver = "glpk"
    genes, rules = model_rules(model)
    knockouts = design(len(genes), query_pairs, array, seed)
    ptr = np.concatenate([[0], np.cumsum([len(k) for k in knockouts])]).astype(np.int64)
    reactions, bounds = rules.removed_reactions(np.fromiter(itertools.chain(*knockouts), np.int64), ptr)
    lost = [frozenset(reactions[a:b].tolist()) for a, b in itertools.pairwise(bounds.tolist())]
    solver, alone, lines, begun = (
        GrowthSolver(model),
        lost[: len(genes)],
        ["genes\tfitness"],
        time.monotonic(),
    )
    for k, (knockout, closed) in enumerate(zip(knockouts, lost, strict=True)):
        growth = solver.growth(closed, [alone[gene] for gene in knockout])
        lines.append(f"{'|'.join(genes[gene] for gene in knockout)}\t{growth:.6f}")
        if (k + 1) % 2000 == 0 or k + 1 == len(knockouts):
            print(f"{k + 1:,} of {len(knockouts):,}, {time.monotonic() - begun:.0f} s", file=sys.stderr)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))
    temporary.replace(path)
    return path


def main(arguments: list[str]) -> int:
    given = dict(argument.partition("=")[::2] for argument in arguments if "=" in argument)
    folders = [argument for argument in arguments if "=" not in argument and not argument.startswith("-")]
    if len(folders) != 1 or any(key not in KEYS for key in given):
        print(__doc__, file=sys.stderr)
        return 0 if "--help" in arguments else 2
    try:
        print(simulate(Path(folders[0]).expanduser(), **{**KEYS, **{k: int(v) for k, v in given.items()}}))
    except CacheError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Command lines of this folder: the name of an experiment, then ``key=value``; Hydra reads the rest."""

from __future__ import annotations

import sys
from pathlib import Path

EXPERIMENT = Path(__file__).resolve().parents[1]
REPOSITORY = EXPERIMENT.parents[1]
TRAIN_CONF = REPOSITORY / "experiments" / "train" / "conf"
QUERIES = EXPERIMENT / "queries"

# The training of experiments/train, which is a package of this repository and not of an installation.
if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))


def names() -> list[str]:
    """Experiments there are: the files of ``conf/experiment``."""
    return sorted(
        path.stem for path in (EXPERIMENT / "conf" / "experiment").glob("*.yaml") if path.stem != "kuzmin"
    )


def hydra_arguments(given: list[str], default: str | None = None) -> list[str]:
    """What Hydra is to read, from ``name key=value ...``.

    Raises:
        SystemExit: If the name is none of :func:`names`, or missing where there is no default.
    """
    named = bool(given) and "=" not in given[0] and not given[0].startswith("-")
    name = given[0] if named else default
    if name not in names() and "--help" not in given:
        said = "no experiment is named" if name is None else f"{name!r} is no experiment"
        raise SystemExit(f"{said}; one of {', '.join(names())}, such as: {sys.argv[0]} shared epochs=2")
    rest = given[1:] if named else given
    return ["--config-dir", str(EXPERIMENT / "conf"), f"+experiment={name or names()[0]}", *rest]

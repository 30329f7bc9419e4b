"""Reading yeast-GEM's YAML file without cobra, which takes half a minute for it.

The file (https://github.com/SysBioChalmers/yeast-GEM, ``model/yeast-GEM.yml``, CC BY 4.0) holds ordered mappings of
plain values. It is read by a *safe* YAML loader, which makes nothing but such values, and gives the few attributes of a
cobra ``Model`` that :func:`torchcell_cache.sources.metabolic.metabolic_base_graph` asks for.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from torchcell_cache.errors import SourceContractError
from torchcell_cache.sources.delimited import plain_text
from torchcell_cache.sources.measurements import number_of

AGAIN = "fetch it again: model/yeast-GEM.yml of a release of github.com/SysBioChalmers/yeast-GEM"


class Item(NamedTuple):
    """A gene or a metabolite."""

    id: str


def read_yeast_gem(path: str | Path) -> Any:
    """Read a model in the YAML of yeast-GEM (also cobra's own), plain or ``.gz``.

    Args:
        path: The file.

    Returns:
        ``genes``, ``metabolites`` and ``reactions``, with cobra's names. A reaction has an ``id``, a
        ``gene_reaction_rule`` (empty for none), ``metabolites`` with their stoichiometry (negative for what is consumed),
        ``lower_bound`` and ``upper_bound`` in mmol/gDW/h, ``objective_coefficient`` (1 for the growth reaction), and
        ``subsystem``, joined by ``;`` if there are several.

    Raises:
        SourceContractError: If it is no such file.
    """
    import yaml  # type: ignore[import-untyped]

    # LibYAML's loader where PyYAML was built with it: five seconds instead of a minute.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = plain_text(path)
    try:
        document = yaml.load(text, Loader=loader)  # noqa: S506 - both are safe loaders
        parts = {key: value for key, value in dict(document).items() if key in _PARTS}
        genes, metabolites = ([Item(str(dict(i)["id"])) for i in parts[key]] for key in _PARTS[:2])
        reactions = [_reaction(dict(entry)) for entry in parts["reactions"]]
    except SourceContractError as error:
        raise error.within(str(path)) from None
    except Exception as error:  # of YAML, of values that are not where they should be
        raise SourceContractError(
            f"{path} is not a metabolic model in YAML ({type(error).__name__}: {error}); expected "
            f"{', '.join(_PARTS)}",
            path=path,
            fix=AGAIN,
        ) from None
    return SimpleNamespace(genes=genes, metabolites=metabolites, reactions=reactions)


_PARTS = ("genes", "metabolites", "reactions")


def _reaction(entry: dict[str, Any]) -> SimpleNamespace:
    name = str(entry["id"])
    listed = entry["metabolites"]  # a mapping, or what YAML makes of an ordered one
    listed = list(listed.items()) if isinstance(listed, dict) else [(key, value) for key, value in listed]
    stoichiometry = {Item(str(metabolite)): value for metabolite, value in listed}
    if len(stoichiometry) < len(listed):
        raise SourceContractError(f"reaction {name} names a metabolite twice", fix=AGAIN)
    rule, subsystem = entry.get("gene_reaction_rule") or "", entry.get("subsystem") or ""
    if not isinstance(rule, str):
        raise SourceContractError(f"reaction {name} has the gene rule {rule!r}, expected text", fix=AGAIN)
    objective = entry.get("objective_coefficient")
    numbers = [*stoichiometry.values(), entry.get("lower_bound"), entry.get("upper_bound"), objective or 0]
    values = [number_of(value) for value in numbers]
    wrong = [not math.isfinite(value) for value in values[:-3]] + list(map(math.isnan, values[-3:]))
    if any(wrong):
        raise SourceContractError(
            f"reaction {name} has {numbers[wrong.index(True)]!r} where a coefficient or bound is expected",
            fix=AGAIN,
        )
    return SimpleNamespace(
        id=name,
        gene_reaction_rule=rule,
        metabolites=dict(zip(stoichiometry, values, strict=False)),
        lower_bound=values[-3],
        upper_bound=values[-2],
        objective_coefficient=values[-1],
        subsystem=subsystem if isinstance(subsystem, str) else "; ".join(map(str, subsystem)),
    )

"""Reading yeast-GEM's YAML file without cobra, which takes half a minute for it.

The file (https://github.com/SysBioChalmers/yeast-GEM, ``model/yeast-GEM.yml``, CC BY 4.0) holds ordered mappings of
plain values. It is read by a *safe* YAML loader, which makes nothing but such values, and gives the few attributes of a
cobra ``Model`` that :func:`torchcell_cache.sources.metabolic.metabolic_base_graph` asks for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchcell_cache.errors import SourceContractError
from torchcell_cache.sources.delimited import read_text
from torchcell_cache.sources.measurements import number_of

AGAIN = "fetch it again: model/yeast-GEM.yml of a release of github.com/SysBioChalmers/yeast-GEM"


@dataclass(frozen=True, slots=True)
class Item:
    """A gene or a metabolite."""

    id: str


@dataclass(frozen=True, slots=True, eq=False)
class Reaction:
    """A reaction, with cobra's names.

    Attributes:
        id: Its name in the model.
        gene_reaction_rule: Boolean expression over gene names, empty for none.
        metabolites: Stoichiometry, negative for what is consumed.
        lower_bound: Least flux, in mmol/gDW/h.
        upper_bound: Largest flux, in mmol/gDW/h.
        objective_coefficient: 1 for the growth reaction.
        subsystem: Pathways, joined by ``;`` if there are several.
    """

    id: str
    gene_reaction_rule: str
    metabolites: dict[Item, float]
    lower_bound: float
    upper_bound: float
    objective_coefficient: float
    subsystem: str


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """What a base graph needs of a genome-scale model."""

    genes: list[Item]
    metabolites: list[Item]
    reactions: list[Reaction]


def read_yeast_gem(path: str | Path) -> Model:
    """Read a model in the YAML of yeast-GEM (also cobra's own), plain or ``.gz``.

    Args:
        path: The file.

    Raises:
        SourceContractError: If it is no such file.
    """
    import yaml  # type: ignore[import-untyped]

    # LibYAML's loader where PyYAML was built with it: five seconds instead of a minute.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = read_text(path)
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
    return Model(genes, metabolites, reactions)


_PARTS = ("genes", "metabolites", "reactions")


def _reaction(entry: dict[str, Any]) -> Reaction:
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
    return Reaction(
        id=name,
        gene_reaction_rule=rule,
        metabolites=dict(zip(stoichiometry, values, strict=False)),
        lower_bound=values[-3],
        upper_bound=values[-2],
        objective_coefficient=values[-1],
        subsystem=subsystem if isinstance(subsystem, str) else "; ".join(map(str, subsystem)),
    )

"""Growth of knock-outs by flux balance analysis, with as few linear programs as possible.

Closing reactions only adds constraints, which gives two exact shortcuts from a solved set of closed reactions
to a larger one: if the solved set's optimum sends no flux through the additional reactions, it stays feasible
and so the growth stays; and if the solved set does not grow, neither does the larger one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchcell_cache.errors import SourceContractError

FLUX_TOLERANCE = 1e-9
"""A flux up to this counts as zero; far below the solver's own feasibility tolerance of 1e-7."""

GROWTH_DECIMALS = 6
"""Growth fractions are rounded to what the solver's tolerance supports, to repeat on another machine."""


@dataclass(frozen=True, slots=True)
class _Optimum:
    """Growth as a fraction of the wild type, and the reactions that carry flux in one optimum."""

    growth: float
    active: frozenset[int]


class GrowthSolver:
    """Growth under sets of closed reactions; remembers every set it solved.

    Not safe for several threads. The model is changed during a solution and restored after it.

    Args:
        model: A cobra model.

    Raises:
        SourceContractError: If the wild type does not grow.
    """

    def __init__(self, model: Any) -> None:
        self._reactions = list(model.reactions)
        self._problem = model.solver
        # The linear program holds two variables per reaction: flux forwards and backwards.
        row = {variable.name: k for k, variable in enumerate(self._problem.variables)}
        self._forward = np.array([row[reaction.id] for reaction in self._reactions], dtype=np.int64)
        self._reverse = np.array([row[reaction.reverse_id] for reaction in self._reactions], dtype=np.int64)
        self._solved: dict[frozenset[int], _Optimum] = {}
        self._wild_growth = 1.0
        self.num_programs = 0
        """Linear programs solved so far."""
        wild_type = self._solve(frozenset())
        if wild_type.growth <= 0:
            raise SourceContractError("the wild type of the model does not grow on its medium")
        self._wild_growth = wild_type.growth
        self._solved[frozenset()] = _Optimum(1.0, wild_type.active)

    def growth(self, closed: frozenset[int], parts: Sequence[frozenset[int]] = ()) -> float:
        """Growth with the reactions ``closed``, as a fraction of the wild type.

        Args:
            closed: Positions of reactions.
            parts: Subsets of ``closed`` that may already be solved (the single knock-outs of a multiple one).
        """
        known = self._solved.get(closed)
        if known is not None:
            return known.growth
        for part in (frozenset[int](), *parts):
            optimum = self._solved.get(part)
            if optimum is not None and (optimum.growth == 0 or optimum.active.isdisjoint(closed)):
                # Not remembered: it costs nothing to find again, and its optimum is the part's.
                return optimum.growth
        optimum = self._solve(closed)
        growth = min(max(0.0, round(optimum.growth / self._wild_growth, GROWTH_DECIMALS)), 1.0)
        self._solved[closed] = _Optimum(growth, optimum.active)
        return growth

    def _solve(self, closed: Iterable[int]) -> _Optimum:
        """Absolute growth; the solver starts from the previous optimum."""
        self.num_programs += 1
        bounds = [(self._reactions[k], self._reactions[k].bounds) for k in sorted(closed)]
        try:
            for reaction, _ in bounds:
                reaction.bounds = (0.0, 0.0)
            status = self._problem.optimize()
            if status == "infeasible":
                return _Optimum(0.0, frozenset())
            if status != "optimal":
                names = [reaction.id for reaction, _ in bounds]
                raise SourceContractError(f"the solver answers '{status}' for closed reactions {names}")
            value = np.fromiter(self._problem.primal_values.values(), dtype=np.float64)
            flux = value[self._forward] - value[self._reverse]
            active = np.flatnonzero(np.abs(flux) > FLUX_TOLERANCE)
            return _Optimum(float(self._problem.objective.value), frozenset(active.tolist()))
        finally:
            for reaction, old in bounds:
                reaction.bounds = old

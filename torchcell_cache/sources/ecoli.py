"""The embedded dataset: *E. coli* knock-outs labelled with growth by flux balance analysis.

The model is iJO1366 (Orth et al. 2011, https://doi.org/10.1038/msb.2011.65: 1,367 genes, 2,583 reactions,
1,805 metabolites), read from the file that the package ``cobra`` carries, so nothing is downloaded. Only this
file imports cobra, and only when called.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from torchcell_cache.core.checks import truth, whole_number
from torchcell_cache.core.ragged import Float32Array, offsets
from torchcell_cache.errors import SettingError, SourceContractError, install_line
from torchcell_cache.sources.metabolic import metabolic_base_graph, model_rules

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData

    from torchcell_cache.sources.table import PerturbationTable

Progress = Callable[[int, int], None]
"""Called with the number of labelled knock-outs and their total."""

_FLUX_TOLERANCE = 1e-9
"""A flux up to this counts as zero; far below the solver's own feasibility tolerance of 1e-7."""

_GROWTH_DECIMALS = 6
"""Growth fractions are rounded to what the solver's tolerance supports, to repeat on another machine."""

_REPORT_EVERY = 500
_DRAW = 4096


def ecoli_model() -> Any:
    """The cobra model iJO1366 from cobra's own package data, solved by GLPK.

    Raises:
        SettingError: If cobra is not installed.
    """
    try:
        from cobra.io import read_sbml_model
    except ImportError as error:
        raise SettingError(
            f"the E. coli model is part of the package cobra, which cannot be imported ({error})",
            fix=install_line("demo"),
        ) from None
    with resources.as_file(resources.files("cobra.data") / "iJO1366.xml.gz") as path:
        model = read_sbml_model(str(path))
    # cobra prefers a commercial solver where it finds one; labels should not depend on that.
    model.solver = "glpk"
    return model


def ecoli_base_graph(self_loops: bool = False, *, model: Any = None) -> HeteroData:
    """Base graph of iJO1366, see :func:`torchcell_cache.sources.metabolic.metabolic_base_graph`.

    Args:
        self_loops: Append one self loop per gene to each gene-gene edge type.
        model: What :func:`ecoli_model` returned, to read the file only once.

    Example:
        >>> graph = tc.sources.ecoli_base_graph()  # doctest: +SKIP
    """
    self_loops = truth("self_loops", self_loops)
    return metabolic_base_graph(ecoli_model() if model is None else model, self_loops=self_loops)


def ecoli_knockouts(
    num_samples: int = 20_000, seed: int = 0, *, model: Any = None, progress: Progress | None = None
) -> tuple[list[list[str]], Float32Array]:
    """Knock-outs of one to three genes and their growth.

    First all 1,367 single knock-outs in gene order, then doubles and triples, mixed by a fair coin, their
    genes drawn uniformly from all genes, all distinct. Nothing steers the draw towards genes that matter, so
    more than half of the knock-outs grow like the wild type and most others not at all. The same seed gives
    the same knock-outs, and a larger ``num_samples`` continues a smaller one.

    Args:
        num_samples: How many; fewer than 1,367 gives the first singles.
        seed: Seed of the draws.
        model: What :func:`ecoli_model` returned, to read the file only once.
        progress: Called now and then with (done, total).

    Returns:
        Gene names of each knock-out, ascending, and growth on the model's default medium (aerobic glucose
        minimal) as a fraction of the wild type, rounded to six decimals, ``[num_samples] float32``. Where the
        model's maintenance demand cannot be met, growth is 0.

    Raises:
        SettingError: If cobra is not installed or ``num_samples`` is not positive.

    Example:
        >>> genes, growth = tc.sources.ecoli_knockouts(1000)  # doctest: +SKIP
    """
    num_samples, seed = whole_number("num_samples", num_samples, 1), whole_number("seed", seed, 0)
    model = ecoli_model() if model is None else model
    genes, rules = model_rules(model)
    knockouts = _draw(num_samples, len(genes), seed)
    ids = np.fromiter(itertools.chain.from_iterable(knockouts), dtype=np.int64)
    ptr = offsets(np.array([len(knockout) for knockout in knockouts]))
    reactions, bounds = rules.removed_reactions(ids, ptr)

    solver = GrowthSolver(model)
    fitness = np.empty(num_samples, dtype=np.float32)
    alone: list[frozenset[int]] = []
    for k, knockout in enumerate(knockouts):
        lost = frozenset(reactions[bounds[k] : bounds[k + 1]].tolist())
        if len(knockout) == 1:
            alone.append(lost)
        fitness[k] = solver.growth(lost, [alone[gene] for gene in knockout])
        if progress is not None and ((k + 1) % _REPORT_EVERY == 0 or k + 1 == num_samples):
            progress(k + 1, num_samples)
    return [[genes[gene] for gene in knockout] for knockout in knockouts], fitness


def EcoliKnockouts(  # noqa: N802 - a source, named like the classes it stands beside
    num_samples: int = 20_000, seed: int = 0, *, self_loops: bool = False, progress: Progress | None = None
) -> PerturbationTable:
    """The embedded dataset as a source: base graph, knock-outs and the phenotype ``fitness``.

    Args:
        num_samples: Number of knock-outs, see :func:`ecoli_knockouts`.
        seed: Seed of the draws.
        self_loops: Append one self loop per gene to each gene-gene edge type.
        progress: Called now and then with (labelled, total).

    Example:
        >>> source = tc.sources.EcoliKnockouts(num_samples=1000)  # doctest: +SKIP
    """
    from torchcell_cache.sources.table import PerturbationTable

    num_samples, seed = whole_number("num_samples", num_samples, 1), whole_number("seed", seed, 0)
    self_loops, model = truth("self_loops", self_loops), ecoli_model()
    graph = metabolic_base_graph(model, self_loops=self_loops)
    knockouts, fitness = ecoli_knockouts(num_samples, seed, model=model, progress=progress)
    return PerturbationTable(graph, knockouts, phenotypes={"fitness": fitness})


def _draw(num_samples: int, num_genes: int, seed: int) -> list[tuple[int, ...]]:
    """All singles, then distinct doubles and triples, each ascending."""
    drawn = [(gene,) for gene in range(min(num_genes, num_samples))]
    knockouts: dict[tuple[int, ...], None] = dict.fromkeys(drawn)
    rng = np.random.default_rng(seed)
    while len(knockouts) < num_samples:
        # Always the same number of draws, so a longer list continues a shorter one.
        genes = rng.integers(num_genes, size=(_DRAW, 3)).tolist()
        for row, size in zip(genes, rng.integers(2, 4, size=_DRAW).tolist(), strict=True):
            knockout = tuple(sorted(set(row[:size])))
            if len(knockout) == size and len(knockouts) < num_samples:
                knockouts[knockout] = None
    return list(knockouts)


class GrowthSolver:
    """Growth under sets of closed reactions by flux balance analysis, with as few linear programs as possible.

    Closing reactions only adds constraints, which gives two exact shortcuts from a solved set of closed reactions to a larger
    one: if the solved set's optimum sends no flux through the additional reactions, it stays feasible and so the growth
    stays; and if the solved set does not grow, neither does the larger one. The model is changed during a solution and
    restored after it, so this is not safe for several threads.
    """

    def __init__(self, model: Any) -> None:
        self._reactions = list(model.reactions)
        self._problem = model.solver
        # The linear program holds two variables per reaction: flux forwards and backwards.
        row = {variable.name: k for k, variable in enumerate(self._problem.variables)}
        self._forward = np.array([row[reaction.id] for reaction in self._reactions], dtype=np.int64)
        self._reverse = np.array([row[reaction.reverse_id] for reaction in self._reactions], dtype=np.int64)
        self.num_programs = 0
        """Linear programs solved so far."""
        self._wild_growth, active = self._solve(frozenset())
        if self._wild_growth <= 0:
            raise SourceContractError("the wild type of the model does not grow on its medium")
        # Growth as a fraction of the wild type, and the reactions that carry flux in one optimum.
        self._solved: dict[frozenset[int], tuple[float, frozenset[int]]] = {frozenset(): (1.0, active)}

    def growth(self, closed: frozenset[int], parts: Sequence[frozenset[int]] = ()) -> float:
        """Growth without the reactions ``closed``, of which ``parts`` may be solved, as a fraction of the wild type."""
        if closed in self._solved:
            return self._solved[closed][0]
        for part in (frozenset[int](), *parts):
            growth, active = self._solved.get(part, (1.0, closed))
            if growth == 0 or active.isdisjoint(closed):
                # Not remembered: it costs nothing to find again, and its optimum is the part's.
                return growth
        growth, active = self._solve(closed)
        growth = min(max(0.0, round(growth / self._wild_growth, _GROWTH_DECIMALS)), 1.0)
        self._solved[closed] = growth, active
        return growth

    def _solve(self, closed: Iterable[int]) -> tuple[float, frozenset[int]]:
        """Absolute growth; the solver starts from the previous optimum."""
        self.num_programs += 1
        bounds = [(self._reactions[k], self._reactions[k].bounds) for k in sorted(closed)]
        try:
            for reaction, _ in bounds:
                reaction.bounds = (0.0, 0.0)
            status = self._problem.optimize()
            if status == "infeasible":
                return 0.0, frozenset()
            if status != "optimal":
                names = [reaction.id for reaction, _ in bounds]
                raise SourceContractError(f"the solver answers '{status}' for closed reactions {names}")
            value = np.fromiter(self._problem.primal_values.values(), dtype=np.float64)
            flux = value[self._forward] - value[self._reverse]
            active = np.flatnonzero(np.abs(flux) > _FLUX_TOLERANCE)
            return float(self._problem.objective.value), frozenset(active.tolist())
        finally:
            for reaction, old in bounds:
                reaction.bounds = old

"""Which columns of a table of edges hold the two genes of each edge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torchcell_cache.errors import SourceContractError
from torchcell_cache.sources.table_headers import NAMELESS, edge_columns, is_number

Known = Callable[[str], bool]
"""Whether a name is a gene of the cell."""

_RELATIONS = ("pp", "pd", "pr", "rc", "cr", "gl", "pm", "mp", "interacts", "binds", "activates", "inhibits")
"""Second cells of SIF lines: SIF's own abbreviations, and words that name a relation and never a gene."""


class Layout(NamedTuple):
    """Columns of the sources and of the targets; in SIF all columns from there on are targets."""

    source: int
    target: int
    is_sif: bool = False


def edge_layout(
    origin: str, names: list[str] | None, head: Sequence[list[str]], known: Known | None, is_sif: bool
) -> Layout:
    """Where the ends of the edges are."""
    width = len(names) if names else max(map(len, head))
    if is_sif or (names is None and _is_sif(head)):
        return Layout(0, 2, True)
    start = int(_numbers_rows(names, head))
    if width < start + 2:
        raise SourceContractError(
            f"{origin}: expected two columns, got {(names or head[0])[:3]}",
            fix="one edge per row: source and target, separated by tab (TSV) or comma (CSV)",
        )
    candidates = [*(edge_columns(names) if names else ()), (start, start + 1)]
    if known is None:
        _check_columns(origin, names, head, *candidates[0])
        return Layout(*candidates[0])
    met = [
        sum(known(row[i]) and known(row[j]) for row in head if len(row) > max(i, j)) for i, j in candidates
    ]
    if max(met) == 0:
        holding = [k for k in range(width) if any(len(row) > k and known(row[k]) for row in head)]
        if len(holding) == 2:
            return Layout(holding[0], holding[1])
    best = candidates[met.index(max(met))]
    if (
        names is None
        and len({len(row) for row in head}) > 1
        and any(known(c) for row in head for c in row[2:])
    ):
        raise _refused(
            origin, "rows of several lengths with genes behind the second column (an adjacency list?)"
        )
    return Layout(*best)


def _is_sif(head: Sequence[Sequence[str]]) -> bool:
    return bool(head) and all(len(row) > 2 and row[1].lower() in _RELATIONS for row in head)


def _is_ragged(head: Sequence[Sequence[str]]) -> bool:
    return len({len(row) for row in head}) > 1 and max(map(len, head)) > 2


def _numbers_rows(names: list[str] | None, head: Sequence[Sequence[str]]) -> bool:
    """Whether the first column numbers the rows, as pandas and R write it."""
    if any(len(row) < 3 or not row[0].isdigit() for row in head):
        return False
    if names is not None:
        return names[0].lower() in ("", "unnamed: 0", "index", "level_0")
    first = int(head[0][0])
    counts = first < 2 and all(int(row[0]) == first + k for k, row in enumerate(head))
    return counts and not any(is_number(row[1]) for row in head)


def _check_columns(
    origin: str, names: list[str] | None, head: Sequence[Sequence[str]], source: int, target: int
) -> None:
    """Without known genes: the two sides must be alike, and nothing must look like a third one."""
    sides = [[row[k] for row in head if len(row) > k and row[k] not in NAMELESS] for k in (source, target)]
    shares = [sum(map(is_number, side)) / max(len(side), 1) for side in sides]
    if abs(shares[0] - shares[1]) > 0.5:
        k = int(shares[1] > shares[0])
        raise _refused(
            origin, f"column {(source, target)[k] + 1} holds numbers ({sides[k][0]!r}), the other names"
        )
    if names is not None:
        if not names[source] or not names[target]:
            raise _refused(origin, f"the columns are {', '.join(map(repr, names[:4]))}")
        return
    if _is_ragged(head):
        raise _refused(origin, "rows of several lengths without a header (an adjacency list?)")
    third = {row[2] for row in head if len(row) > 2}
    if len(set(sides[1])) == 1 and len(head) > 1 and len(third) > 1 and not any(map(is_number, third)):
        raise _refused(origin, f"the second column is {sides[1][0]!r} throughout, and names follow it")


def _refused(origin: str, why: str) -> SourceContractError:
    return SourceContractError(
        f"{origin}: it cannot be told which columns hold the two genes of an edge: {why}",
        fix="give the columns a header with source and target, pass gene_set=[...], or pass (sources, targets)",
    )

"""HTML made by hand: tables, bars and histograms for notebooks and for the card of a store.

Everything that comes from outside (names, settings, notes) goes through :func:`text`; nothing here makes a script.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

_SHOWN = 20
_COLORS = ("#4878a8", "#6aa584", "#d3a04c", "#b8605e", "#8268a0", "#7a7a7a")


class Shown:
    """What a notebook shows as a table: the fields of a dataclass, the lines of anything else's ``report()``."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        facts = _facts(self)
        if facts is None:
            return table([(line,) for line in self.report().splitlines()], title=repr(self))  # type: ignore[attr-defined]
        plain = type(self).__str__ is object.__str__  # nothing but all fields once more
        title = type(self).__name__ if plain else str(self).partition("\n")[0]
        return table([(name, _value(value)) for name, value in facts.items()], title=title)


def _facts(value: Any) -> Mapping[str, Any] | None:
    """What a report says of itself, or its fields; ``None`` of anything else."""
    if not is_dataclass(value):
        return None
    if hasattr(value, "to_dict"):
        return value.to_dict()  # type: ignore[no-any-return]
    return {field.name: getattr(value, field.name) for field in fields(value) if field.repr}


def text(value: object) -> str:
    """Anything as HTML that says just that."""
    return html.escape(str(value))


def table(rows: Iterable[Sequence[Any]], head: Sequence[str] = (), title: str = "") -> str:
    """Rows of cells; numbers to the right where columns have a head, :class:`Markup` as it is, everything else as text."""
    rows = [*rows]
    first = rows[0] if rows else head
    lines = ["".join(_cell(name, "th", _right(below)) for name, below in zip(head, first, strict=False))]
    lines += ["".join(_cell(each, "td", bool(head) and _right(each)) for each in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines[not head :])
    return f"{f'<b>{text(title)}</b>' * bool(title)}<table>{body}</table>"


class Markup(str):
    """HTML made here."""

    __slots__ = ()


def _cell(value: object, tag: str, right: bool) -> str:
    style = f"text-align:{'right' if right else 'left'}"  # said for each cell: notebooks put all to the right
    return f"<{tag} style={style}>{value if isinstance(value, Markup) else text(_number(value))}</{tag}>"


def _right(value: object) -> bool:
    """Whether this is a number, which stands below others by its last digit."""
    return not isinstance(value, bool | Markup) and bool(re.fullmatch(r"[-+\d.,]+(e[-+]?\d+)?%?", str(value)))


def _number(value: Any) -> str:
    """A number with few digits; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _value(value: Any) -> str | int | float:
    """A field of a report in a few words; reports in it as a table, a row each."""
    listed = value if isinstance(value, list) else ()
    several = value if isinstance(value, Mapping) else dict(enumerate(listed))
    each_facts = [(name, _facts(each)) for name, each in several.items()]
    rows = [(str(name), *map(_value, facts.values())) for name, facts in each_facts if facts is not None]
    if rows and len(rows) == len(each_facts):
        return Markup(table(rows, ("", *(each_facts[0][1] or ()))))
    facts = value if isinstance(value, Mapping) else _facts(value)
    if facts is not None:
        value = [f"{name}: {_number(each)}" for name, each in facts.items()]
    if isinstance(value, list | tuple):
        more = [f"... and {len(value) - _SHOWN:,} more"] * (len(value) > _SHOWN)
        return "; ".join([*map(str, value[:_SHOWN]), *more]) or "none"
    return value if isinstance(value, int | float | str) else repr(value)


def shares(counts: Mapping[Any, int]) -> Markup:
    """One bar, divided by how many there are of each."""
    total = max(sum(counts.values()), 1)
    parts = [
        f'<span title="{text(name)}: {count:,}" style="flex:{count};background:{_COLORS[k % len(_COLORS)]};color:#fff;'
        f'padding:0 3px;overflow:hidden;white-space:nowrap">{text(name) if count > 0.04 * total else "&nbsp;"}</span>'
        for k, (name, count) in enumerate(counts.items())
        if count
    ]
    return Markup(
        f'<span style="display:flex;width:22em;max-width:100%;font-size:90%">{"".join(parts)}</span>'
    )


def bars(
    name: str, facts: Mapping[str, Any], labels: Sequence[str] | None = None, unit: str = "samples"
) -> Markup:
    """A histogram as a small picture: bars with their counts, a few ticks, a line at the median."""
    if not facts["count"]:
        return Markup(f"<span>{text(name)}: no values</span>")
    counts, edges = facts["counts"], facts["edges"]
    logarithmic, (low, high), top = wide_counts(counts), (edges[0], edges[-1]), max(counts)
    span = (high - low) or 1.0
    heights = [
        (math.log10(2 * n) / math.log10(2 * top) if logarithmic else n / top) if n else 0.0 for n in counts
    ]
    parts = []
    for k, (count, height) in enumerate(zip(counts, heights, strict=True)):
        left, right = (8 + 214 * (edge - low) / span for edge in edges[k : k + 2])
        said = f"{labels[k] if labels else bin_label(facts, k)}: {count:,} {unit}"
        parts.append(
            f'<rect x="{left:.1f}" y="{96 - 76 * height:.1f}" width="{max(right - left - 0.6, 0.6):.1f}" '
            f'height="{76 * height:.1f}" fill="{_COLORS[0]}"><title>{text(said)}</title></rect>'
        )
    ticks = _ticks(low, high, facts["whole"])
    if labels:
        ticks = {k + 0.5: label for k, label in enumerate(labels) if k % -(-len(labels) // 5) == 0}
    else:
        at = 8 + 214 * (facts["median"] - low) / span
        parts.append(f'<path d="M{at:.1f} 16V96" stroke="{_COLORS[3]}" stroke-dasharray="3 2"/>')
    for tick, label in ticks.items():
        x = 8 + 214 * (tick - low) / span
        parts.append(f'<text x="{x:.1f}" y="108" text-anchor="middle">{text(label)}</text>')
    said = f"up to {top:,} {unit} a bar{', logarithmic' * logarithmic}"
    numbers = f"median {facts['median']:.4g}, mean {facts['mean']:.4g}"
    missing = f"; {facts['missing']:,} without" if facts["missing"] else ""
    return Markup(
        f'<svg width="230" height="140" viewBox="0 0 230 140" font-size="9.5" font-family="sans-serif" fill="currentColor" '
        f'role="img"><title>{text(name)}</title><text x="8" y="12">{text(said)}</text>{"".join(parts)}'
        f'<path d="M8 96.5H222" stroke="currentColor"/><text x="8" y="122" font-weight="bold">{text(name[:38])}</text>'
        f'<text x="8" y="135">{text(numbers + missing)}</text></svg>'
    )


def _ticks(low: float, high: float, whole: bool) -> dict[float, str]:
    """Round numbers between two bounds; whole ones where values are."""
    raw = max((high - low) / 6, 1e-300)
    step = 10.0 ** math.floor(math.log10(raw))
    step *= next((m for m in (1, 2, 5) if m * step >= raw), 10)
    step = max(step, 1.0) if whole else step
    first = math.ceil(low / step)
    return {k * step: f"{k * step:.6g}" for k in range(first, first + 7) if k * step <= high}


def wide_counts(counts: Sequence[int]) -> bool:
    """Whether bars differ so much that small ones are only seen on a logarithmic axis."""
    some = [count for count in counts if count]
    return bool(some) and max(some) > 100 * min(some)


def bin_label(facts: Mapping[str, Any], k: int) -> str:
    """The values of a bin."""
    low, high = facts["edges"][k], facts["edges"][k + 1]
    if not facts["whole"]:
        return f"{low:.4g} .. {high:.4g}"
    return f"{low + 0.5:.0f}" if high - low <= 1 else f"{low + 0.5:.0f} .. {high - 0.5:.0f}"

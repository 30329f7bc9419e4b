"""Results as JSON and as Markdown tables with ratios."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from experiments.benchmarks.harness import Machine, Timing

OURS, SCHEME, PEER, FLOOR, OTHER = "ours", "scheme", "peer", "floor", "other"
# Gaps below this are noise on a shared machine.
NOISE = 1.5


@dataclass
class Entry:
    """What one way reached.

    Attributes:
        way: Name of the way.
        role: ``ours``, ``scheme`` (torchcell's), ``peer`` (a general product) or ``floor`` (a bound, not a
            product).
        value: In the unit of the row.
        low: 10th percentile of the rounds, or ``None`` for a count.
        high: 90th percentile.
        note: Shown beside the value.
    """

    way: str
    role: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass
class Row:
    """One piece of work, done in several ways.

    Attributes:
        key: Stable name for scripts.
        work: What was done.
        unit: ``us``, ``ms``, ``s``, ``B``, ``MB``, ``%`` (lower is better) or ``/s`` (higher is better).
        target: The value to reach, in ``unit``, or ``None``.
        target_way: Which of our entries the target is for; the first one if ``None``.
        entries: All ways.
    """

    key: str
    work: str
    unit: str
    target: float | None = None
    target_way: str | None = None
    entries: list[Entry] = field(default_factory=list)

    @property
    def higher_is_better(self) -> bool:
        return self.unit.endswith("/s")

    def add(self, way: str, role: str, value: float | Timing, note: str = "") -> None:
        """Adds a plain value, or a timing converted to the unit of the row."""
        if isinstance(value, Timing):
            factor = {"us": 1e6, "ms": 1e3, "s": 1.0}[self.unit]
            entry = Entry(way, role, value.median * factor, value.p10 * factor, value.p90 * factor, note)
        else:
            entry = Entry(way, role, value, note=note)
        self.entries.append(entry)

    def ours(self) -> Entry | None:
        """The entry the target is for."""
        mine = [e for e in self.entries if e.role == OURS]
        named = [e for e in mine if e.way == self.target_way]
        return (named or mine or [None])[0]

    def best(self, role: str) -> Entry | None:
        """The best entry of a role."""
        entries = [e for e in self.entries if e.role == role]
        choose = max if self.higher_is_better else min
        return choose(entries, key=lambda e: e.value) if entries else None

    def ratio(self, other: Entry | None, mine: Entry | None = None) -> float | None:
        """How many times better ``mine`` is than ``other``."""
        mine = mine or self.ours()
        if mine is None or other is None or not mine.value or not other.value:
            return None
        return mine.value / other.value if self.higher_is_better else other.value / mine.value

    def met(self) -> str:
        mine = self.ours()
        if mine is None or self.target is None:
            return "-"
        good = mine.value >= self.target if self.higher_is_better else mine.value <= self.target
        return "yes" if good else "no"


@dataclass
class Report:
    """All rows of a run, in order."""

    title: str
    machine: Machine
    settings: dict[str, object]
    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def row(
        self, key: str, work: str, unit: str, target: float | None = None, target_way: str | None = None
    ) -> Row:
        row = Row(key, work, unit, target, target_way)
        self.rows.append(row)
        return row

    def write_json(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self) | {"date": _now()}, indent=1) + "\n")

    def markdown(self) -> str:
        """Summary, then one table per row."""
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        lines = [f"Measured {_now()} on {self.machine.describe()}. Settings: {settings}.", ""]
        lines += [f"Left out: {name} ({reason})." for name, reason in self.skipped.items()]
        lines += ["", *self._summary(), ""]
        for row in self.rows:
            lines += _details(row)
        return "\n".join(lines).rstrip() + "\n"

    def _summary(self) -> list[str]:
        lines = [
            "| work | ours | target | met | torchcell's scheme | ratio | best general peer | ratio |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            mine, scheme, peer = row.ours(), row.best(SCHEME), row.best(PEER)
            target = "-" if row.target is None else show(row.target, row.unit)
            lines.append(
                f"| {row.work} | {_cell(mine, row)} | {target} | {row.met()} | {_cell(scheme, row)} | "
                f"{_times(row.ratio(scheme))} | {_cell(peer, row, named=True)} | {_times(row.ratio(peer))} |"
            )
        return lines


def _details(row: Row) -> list[str]:
    lines = [
        f"#### {row.work}",
        "",
        "| way | median | 10-90 % | ours is better by | note |",
        "|---|---|---|---|---|",
    ]
    mine = row.ours()
    for entry in sorted(row.entries, key=lambda e: e.value, reverse=row.higher_is_better):
        spread = (
            "-" if entry.low is None else f"{show(entry.low, row.unit)} - {show(entry.high or 0, row.unit)}"
        )
        ratio = "" if entry.role == OURS else _times(row.ratio(entry, mine))
        name = f"**{entry.way}**" if entry.role == OURS else entry.way
        lines.append(f"| {name} | {show(entry.value, row.unit)} | {spread} | {ratio} | {entry.note} |")
    return [*lines, ""]


def _cell(entry: Entry | None, row: Row, named: bool = False) -> str:
    if entry is None:
        return "-"
    return show(entry.value, row.unit) + (f" ({entry.way})" if named else "")


def _times(ratio: float | None) -> str:
    if ratio is None:
        return "-"
    text = f"{ratio:,.0f}" if ratio >= 20 else f"{ratio:.1f}" if ratio >= 1 else f"{ratio:.2f}"
    return f"{text} x" + (" (noise)" if 1 / NOISE < ratio < NOISE else "")


def show(value: float, unit: str) -> str:
    """A number with three significant digits and its unit, moved to the unit that reads best."""
    for small, large, factor in (("us", "ms", 1e3), ("ms", "s", 1e3), ("B", "KB", 1e3), ("KB", "MB", 1e3)):
        if unit == small and abs(value) >= 1000:
            value, unit = value / factor, large
    digits = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{digits}{unit}" if unit == "/s" else f"{digits} {unit}"


def replace_between(path: Path, name: str, text: str) -> bool:
    """Puts ``text`` between the markers of ``name``; False if the file has none."""
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    if not path.is_file():
        return False
    old = path.read_text()
    if start not in old or end not in old:
        return False
    head, rest = old.split(start, 1)
    path.write_text(f"{head}{start}\n{text}\n{end}{rest.split(end, 1)[1]}")
    return True


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")

"""Tables of an earlier run: ``python -m experiments.benchmarks.render results.json docs/benchmarks.md``."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path

from experiments.benchmarks.harness import Machine
from experiments.benchmarks.report import Entry, Report, Row, replace_between


def read_report(path: Path) -> Report:
    """The report that ``Report.write_json`` wrote."""
    data = json.loads(path.read_text())
    machine = Machine(**{f.name: data["machine"][f.name] for f in fields(Machine)})
    report = Report(data["title"], machine, data["settings"], skipped=data["skipped"])
    for row in data["rows"]:
        report.rows.append(Row(**{**row, "entries": [Entry(**entry) for entry in row["entries"]]}))
    return report


def main(arguments: list[str]) -> None:
    source, target = map(Path, arguments)
    if not replace_between(target, "benchmark:cache", read_report(source).markdown()):
        sys.exit(f"{target} has no markers <!-- benchmark:cache:start --> and :end")


if __name__ == "__main__":
    main(sys.argv[1:])

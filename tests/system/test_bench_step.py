"""The benchmark of a training step runs through when small, and all its ways that delete something agree."""

import json
from pathlib import Path

import pytest

from experiments.benchmarks import bench_step


def test_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- benchmark:step:start -->\nold\n<!-- benchmark:step:end -->\nafter\n")
    rows = bench_step.main(["--small", "--json", str(tmp_path / "found.json"), "--markdown", str(page)])
    assert json.loads((tmp_path / "found.json").read_text()) == rows
    assert len(rows) == 19
    assert all(row["ms"] > 0 and row["calls"] and row["peak_mb"] >= 0 for row in rows)
    for kind in {(row["layer"], row["depth"], row["batch"]) for row in rows}:
        of_kind = [r for r in rows if (r["layer"], r["depth"], r["batch"]) == kind]
        losses = [r["loss"] for r in of_kind if r["deletes"]]
        assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-4)
    floor = [r["loss"] for r in rows if not r["deletes"]]
    assert floor == pytest.approx([floor[0]] * 2, rel=1e-4)
    said = capsys.readouterr().out
    assert "Losses of 2 layers of GATv2, 2 samples, 2 ways" in said
    assert "torch" in said.splitlines()[0]
    table = page.read_text()
    assert table.startswith("before\n")
    assert table.endswith("after\n")
    assert "old" not in table
    assert sum(line.startswith("| 2 layers of GAT |") for line in table.splitlines()) == 3

"""The script for an accelerator runs through on the CPU, so that the first minute on a card is not spent on typos."""

import json
from pathlib import Path

import torch

from experiments import gpu_check


def test_on_the_cpu(tmp_path: Path) -> None:
    given = ["--device", "cpu", "--scale", "0.01", "--batch", "3", "--steps", "1", "--json"]
    rows = gpu_check.main([*given, str(tmp_path / "found.json")])
    assert json.loads((tmp_path / "found.json").read_text()) == rows
    compared = [row for row in rows if isinstance(row["value"], bool)]
    assert len(compared) == 4 + (4 + 2 + 1) * 8
    assert not [row["what"] for row in compared if not row["value"]]
    assert all(
        f"training, {mode}: share of waiting for data" in str(rows) for mode in ("shared", "to_pyg", "stock")
    )


def test_what_fails_is_a_line_of_the_table() -> None:
    check = gpu_check.Check(torch.device("cpu"), 1)
    check.tried("broken", lambda: 1 / 0)
    check.tried("fine", lambda: check.note("works", True))
    assert [(row["what"], row["value"]) for row in check.rows] == [("broken", False), ("works", True)]
    assert "ZeroDivisionError" in check.rows[0]["unit"]

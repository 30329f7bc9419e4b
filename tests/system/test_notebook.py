"""The tutorial's notebook in a real kernel: every cell runs, prints what the page shows, and things show themselves."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHOWN = {
    "shown": "tc.build('stores/shown', source=tc.testing.tiny_source(40), processor=tc.LazySubgraphRepresentation())",
    "view": "tc.PreprocessedDataset('stores/shown')[:7]",
    "batch": "tc.PreprocessedDataset('stores/shown').read_batch(range(4))",
    "split": "tc.split_by_perturbation(tc.PreprocessedDataset('stores/shown'))",
    "verify": "tc.verify('stores/shown')",
    "table": "tc.testing.tiny_source(40)",
    "plot": "tc.PreprocessedDataset('stores/shown').plot()",
}
RUN = """
import json, sys
import nbformat
from nbclient import NotebookClient

book = nbformat.read(sys.argv[1], 4)
for cell in book.cells:
    cell.pop("outputs", None) if cell.cell_type == "code" else None
    cell.update({"outputs": [], "execution_count": None} if cell.cell_type == "code" else {})
book.cells += [nbformat.v4.new_code_cell("import torchcell_cache as tc")]
book.cells += [nbformat.v4.new_code_cell(code) for code in json.loads(sys.argv[2])]
NotebookClient(book, timeout=300, kernel_name="python3").execute()
json.dump(book, open("ran.json", "w"))
"""


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kernel and its client in a folder of their own."""
    place = tmp_path_factory.mktemp("jupyter")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(place), "nbclient", "ipykernel"]
    if subprocess.run(pip, capture_output=True, timeout=300, check=False).returncode:
        pytest.skip("nbclient and ipykernel cannot be fetched here")
    return place


@pytest.mark.campaign
def test_the_tutorial_runs_in_a_kernel_and_things_show_themselves(jupyter: Path, tmp_path: Path) -> None:
    notebook = ROOT / "docs" / "tutorial.ipynb"
    env = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{jupyter}",
        "JUPYTER_PATH": str(jupyter / "share" / "jupyter"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "OMP_NUM_THREADS": "1",
    }
    call = [sys.executable, "-c", RUN, notebook, json.dumps([*SHOWN.values()])]
    done = subprocess.run(call, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ran = [
        cell
        for cell in json.loads((tmp_path / "ran.json").read_text())["cells"]
        if cell["cell_type"] == "code"
    ]
    written = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    for cell, page in zip(ran, written, strict=False):
        if page["outputs"]:
            assert printed(cell).replace(str(tmp_path), "/home/you") == printed(page), cell["source"]
    said = "".join(each["text"] for cell in ran for each in cell["outputs"] if each.get("name") == "stderr")
    assert "published gen-" in said
    assert "Warning" not in said
    for name, cell in zip(SHOWN, ran[-len(SHOWN) :], strict=True):
        (result,) = (each["data"] for each in cell["outputs"] if each["output_type"] == "execute_result")
        kind = "image/png" if name == "plot" else "text/html"
        assert kind in result, (name, result.keys())
        assert name == "plot" or "<table>" in "".join(result[kind])


def printed(cell: dict[str, Any]) -> str:
    parts = [each["text"] for each in cell["outputs"] if each.get("name") == "stdout"]
    return "".join(part if isinstance(part, str) else "".join(part) for part in parts)

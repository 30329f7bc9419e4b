"""The ways from a dataset to the bytes are those that the architecture page draws, and short."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import fresh
import pytest

import torchcell_cache as tc

ROOT = Path(__file__).resolve().parents[2]
MOST_FILES = 6

TRACED = """
import json, sys
from pathlib import Path
import torchcell_cache as tc

here = f"{Path(tc.__file__).parent}/"
ways = {"open": lambda: tc.PreprocessedDataset(sys.argv[1]).generation}
dataset = tc.PreprocessedDataset(sys.argv[1])
ways |= {"dataset[i]": lambda: dataset[3], "read_batch": lambda: dataset.read_batch([3, 1])}
found = {}
for name, way in ways.items():
    chain, called = [], []

    def note(frame, event, argument):
        if not frame.f_code.co_filename.startswith(here):
            return
        called.append(frame.f_code.co_filename.removeprefix(here) + ":" + frame.f_code.co_name)
        if frame.f_code.co_name == "_get_all" and not chain:  # the next thing it does is to ask LMDB
            while frame is not None:
                file = frame.f_code.co_filename
                if file.startswith(here) and file not in chain[-1:]:
                    chain.append(file)
                frame = frame.f_back

    way()  # the first time also opens what stays open
    sys.settrace(note)
    way()
    sys.settrace(None)
    found[name] = [file.removeprefix(here).removesuffix(".py") for file in reversed(chain)], called
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[str], list[str]]]:
    root = tmp_path_factory.mktemp("p") / "store"
    tc.build(
        root,
        source=tc.testing.tiny_source(5),
        processor=tc.LazySubgraphRepresentation(),
        storage="delta",
        progress=False,
    )
    done = fresh.run([sys.executable, "-c", TRACED, str(root)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("way", ["dataset[i]", "read_batch"])
def test_the_way_to_the_bytes_is_the_one_that_is_drawn(
    traced: dict[str, tuple[list[str], list[str]]], way: str
) -> None:
    chain = traced[way][0]
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = next(line for line in page.splitlines() if line.strip().startswith(f"{way} "))
    assert re.findall(r"[a-z_]+/[a-z_]+", drawn) == chain
    assert len(chain) <= MOST_FILES


def test_all_files_that_a_sample_or_a_batch_runs_through(
    traced: dict[str, tuple[list[str], list[str]]],
) -> None:
    files = {way: {call.split(":")[0] for call in calls} for way, (_, calls) in traced.items()}
    assert len(files["dataset[i]"]) <= 15
    assert len(files["read_batch"] - {"graph/lasting.py"}) <= 12  # which names the work for a profiler


def test_opening_does_not_write_the_manifest_again(traced: dict[str, tuple[list[str], list[str]]]) -> None:
    calls = traced["open"][1]
    assert "store/manifest.py:load_manifest" in calls
    assert not [call for call in calls if call.endswith((":_canonical", ":seal", ":to_bytes"))]

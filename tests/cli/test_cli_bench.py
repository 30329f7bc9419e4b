"""``torchcell-cache bench``: every number is there, the advice follows from the numbers, mistakes are answered."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from graphs import cell_graph, plain_graph, random_case
from torch_geometric.data import Data

import torchcell_cache as tc
from torchcell_cache.cli import main
from torchcell_cache.cli.bench.report import advice, as_text, investment
from torchcell_cache.cli.bench.stages import CAN_DROP, drop_pages, resident_share, times
from torchcell_cache.cli.bench.store import BenchReport
from torchcell_cache.store.records import open_count

LIGHT = ("read", "decode", "batch")
HEAVY = ("masks", "expand", "samples", "pyg collate", "on the fly")
QUICK = ["num_batches=6", "seconds=1", "batch_size=4", "progress=false"]


def screen(base, count: int) -> tc.PerturbationTable:
    """Samples that all have one value, so that PyG makes batches of them."""
    case = random_case(base, num_samples=count)
    return tc.PerturbationTable(base, case.perturbed, phenotypes={"fitness": [0.5] * count})


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("bench") / "good"
    source = screen(cell_graph(), 20)
    processor = tc.LazySubgraphRepresentation()
    tc.build(root, source=source, processor=processor, shard_size=6, storage="delta", progress=False)
    return root


def facts_of(capsys, *arguments: str) -> dict:
    assert main(["bench", *arguments, "json=true"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_number_is_there_and_makes_sense(store: Path, capsys) -> None:
    before = torch.get_num_threads()
    facts = facts_of(
        capsys, f"root={store}", *QUICK, "workers=[0,1]", "step_ms=2.5", "device=cpu", "epochs=1000"
    )
    assert facts["investment"]["hours_without"] > facts["investment"]["hours_with"] > 0
    assert facts["investment"]["hours_build"] > 0
    assert torch.get_num_threads() == before
    assert facts["samples"] == 20
    assert facts["batch_size"] == 4
    assert facts["content_digest"] == tc.PreprocessedDataset(store).content_digest
    assert not facts["skipped"]
    assert set(facts["stages"]) == {*LIGHT, *HEAVY, "batch, cold"}
    for name, stage in facts["stages"].items():
        assert 0 < stage["p50_ms"] <= stage["p90_ms"] <= stage["p99_ms"], name
        assert 1 <= stage["samples"] <= 4
        assert 1 <= stage["repeats"] <= 6
        assert stage["per_sample_us"] == pytest.approx(stage["p50_ms"] * 1e3 / stage["samples"])
    assert [row["num_workers"] for row in facts["workers"]] == [0, 1]
    for row in facts["workers"]:
        assert row["first_ms"] > 0
        assert row["wait"]["repeats"] >= 5
        assert 0 < row["data_wait_share"] < 1
        assert row["step_wait"]["p50_ms"] > 0
    assert re.fullmatch(r"[01] workers?; data wait .* % of your 2.5 ms step.*", facts["advice"][0])


def test_a_table_for_people(store: Path, capsys) -> None:
    assert main(["bench", f"root={store}", *QUICK[:2], "workers=0", "batch_size=999"]) == 0
    said = capsys.readouterr()
    assert "bench: read\n" in said.err
    assert "bench: loader, 0 workers\n" in said.err
    assert "\x1b" not in said.err + said.out
    lines = said.out.splitlines()
    assert lines[0].startswith(f"{store}: 20 samples as 'delta', records ")
    assert "batches of 20 (999 asked for: the store has no more) at random, seed 0, one thread" in lines[1]
    for name in (*LIGHT, *HEAVY):
        row = next(line for line in lines if line.startswith(f"{name}  "))
        assert len(re.findall(r"[\d.]+ (?:ms|s)\b", row)) == 4
    assert any(line.startswith("workers") and "p99" in line for line in lines)
    tips = lines[lines.index("advice") + 1 :]
    assert tips[0].startswith("  - 0 workers; a batch every ")
    assert any("the cache " in tip for tip in tips)


def test_where_a_step_goes(store: Path, tmp_path: Path, capsys) -> None:
    quick = [*QUICK, "workers=0", "cold=false"]
    facts = facts_of(capsys, f"root={store}", *quick, "hidden=3", "layers=3")
    assert [step["way"] for step in facts["steps"]] == ["shared", "pyg"]
    parts = ["data", "expansion", "layer 1", "layer 2", "layer 3", "backward"]
    for step in facts["steps"]:
        assert list(step["parts_ms"]) == parts
        assert all(ms > 0 for ms in step["parts_ms"].values())
        assert 1 <= step["samples"] <= 4
        assert step["sample_ms"] == pytest.approx(sum(step["parts_ms"].values()) / step["samples"])
    assert any(tip.startswith("the shared mode ") and "width 3" in tip for tip in facts["advice"])
    assert not facts_of(capsys, f"root={store}", *quick)["steps"]  # asked for by a width

    root, own = tmp_path / "homogeneous", tmp_path / "own"
    tc.build(root, source=screen(plain_graph(), 9), processor=tc.SubgraphRepresentation(), progress=False)
    assert main(["bench", f"root={root}", *quick, "hidden=2"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^step .*\blayer 1 +layer 2 +backward +a sample$", said, re.MULTILINE)
    assert "(2 GIN layers of width 2 over all edge types between perturbed nodes, no optimizer)" in said
    tc.build(own, source=[Data(x=torch.ones(2), y=torch.tensor([k])) for k in range(4)], progress=False)
    assert "removes nothing" in facts_of(capsys, f"root={own}", *quick, "hidden=2")["skipped"]["steps"]


def test_stores_that_cannot_do_everything(tmp_path: Path, capsys) -> None:
    def build(name: str, source, **settings) -> str:
        tc.build(tmp_path / name, source=source, progress=False, **settings)
        return f"root={tmp_path / name}"

    quick = [*QUICK, "workers=[0]", "cold=false"]
    own = build("own", [Data(x=torch.ones(2), y=torch.tensor([k])) for k in range(4)])
    facts = facts_of(capsys, own, *quick)
    assert {*LIGHT, "expand", "samples", "pyg collate"} == set(facts["stages"])
    assert set(facts["skipped"]) == {"masks", "on the fly"}
    assert any("cannot be said" in tip for tip in facts["advice"])
    source = screen(plain_graph(), 9)
    for storage in ("perturbation", "full"):
        root = build(storage, source, processor=tc.SubgraphRepresentation(), storage=storage)
        facts = facts_of(capsys, root, *quick)
        assert {*LIGHT, "expand", "samples", "on the fly"} <= set(facts["stages"]), facts["skipped"]
    root = build(
        "gaps",
        random_case(cell_graph(), num_samples=20).source(),
        storage="delta",
        processor=tc.LazySubgraphRepresentation(),
    )
    patient = [
        word for word in quick if not word.startswith(("seconds", "batch_size"))
    ]  # a busy machine has no second
    facts = facts_of(capsys, root, *patient, "batch_size=20")
    assert "has statistics and sample" in facts["skipped"]["expand"]
    assert "exclude_keys" in facts["skipped"]["expand"]
    assert any("cannot be said" in tip for tip in facts["advice"])
    fields = (
        "phenotype_stat_values,phenotype_stat_type_indices,phenotype_stat_sample_indices,phenotype_stat_types"
    )
    facts = facts_of(capsys, root, *quick[:2], *quick[3:], "batch_size=20", f"exclude_keys=[{fields}]")
    assert not facts["skipped"]
    root = build("empty", [], allow_empty=True)
    assert main(["bench", root]) == 2
    assert "has no samples" in capsys.readouterr().err


@pytest.mark.skipif(not CAN_DROP, reason="this system cannot be asked to forget files")
def test_cold_files_are_cold_and_reading_goes_on(store: Path, capsys) -> None:
    dataset = tc.PreprocessedDataset(store)
    before = dataset[3]["gene"].perturbation_indices
    facts = facts_of(capsys, f"root={store}", *QUICK, "workers=[0]", "cold=true")
    assert "batch, cold" in facts["stages"]
    assert facts["stayed_in_memory"] is None or 0 <= facts["stayed_in_memory"] <= 1
    assert torch.equal(dataset[3]["gene"].perturbation_indices, before)
    dataset.close()
    assert open_count() == 0
    facts = facts_of(capsys, f"root={store}", *QUICK, "workers=[0]", "cold=false")
    assert "batch, cold" not in facts["stages"]
    assert facts["stayed_in_memory"] is None


def test_what_is_in_memory_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 16))
    assert resident_share([path]) in (None, 1.0)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    if CAN_DROP:
        drop_pages([path])
        share = resident_share([path])
        assert share is None or 0 <= share <= 1
        assert path.read_bytes() == bytes(1 << 16)
    assert resident_share([]) is None


def test_it_draws(store: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    pytest.importorskip("matplotlib")
    arguments = ["bench", f"root={store}", *QUICK, "workers=[0]", "step_ms=1"]
    assert main([*arguments, f"plot={tmp_path}/a.png"]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert f"plot written to {tmp_path}/a.png" in capsys.readouterr().out
    assert main([*arguments, f"plot={tmp_path}/a.doc"]) == 2
    said = capsys.readouterr()
    assert "png" in said.err
    assert said.out == ""
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    assert main([*arguments, f"plot={tmp_path}/b.png"]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err


MISTAKES = {
    "no root": ([], "bench needs root=..."),
    "misspelt key": (["root=x", "worker=2"], "did you mean 'workers'?"),
    "words for workers": (["root=x", "workers=[a]"], "is not a list of whole numbers"),
    "half a worker": (["root=x", "workers=[0,1.5]"], "is not a list of whole numbers"),
    "true is no number": (["root=x", "workers=[true]"], "is not a list of whole numbers"),
    "no workers": (["root=x", "workers=[]"], "expected numbers from 0 on"),
    "fewer than none": (["root=x", "workers=[-1]"], "expected a whole number from 0 on"),
    "no batch": (["root=x", "batch_size=0"], "a whole number from 1 on"),
    "no batches": (["root=x", "num_batches=0"], "a whole number from 1 on"),
    "not a number": (["root=x", "step_ms=fast"], "is not a number"),
    "no time": (["root=x", "seconds=0"], "expected a number above 0"),
    "endless": (["root=x", "seconds=inf"], "expected a number above 0"),
    "time null": (["root=x", "seconds=null"], "is not a number"),
    "negative step": (["root=x", "step_ms=-1"], "expected a number above 0"),
}


@pytest.mark.parametrize(("arguments", "text"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_answered(arguments, text, capsys) -> None:
    assert main(["bench", *arguments]) == 2
    said = capsys.readouterr()
    assert text in said.err
    assert said.out == ""


def test_help_names_every_key(capsys) -> None:
    assert main(["bench", "--help"]) == 0
    text = capsys.readouterr().out
    for key in ("root: (required)", "step_ms: null", "workers: [0, 1, 2, 4]", "cold: true", "seconds: 20"):
        assert key in text


def test_missing_stores_and_devices(store: Path, capsys) -> None:
    assert main(["bench", f"root={store.parent}/bad"]) == 65
    assert f"stores in {store.parent}: good" in capsys.readouterr().err
    for device in ("gpu", "cuda:99"):
        assert main(["bench", f"root={store}", f"device={device}"]) == 2
        assert f"device={device} cannot be used" in capsys.readouterr().err


# Advice from numbers made up, batches of 10: what would be right is plain from them.

CHEAP = {"read": 0.1, "decode": 0.1, "batch": 0.3, "expand": 20, "samples": 5, "masks": 1}


def made_up(step_ms, waits: dict[int, float], **stages: float) -> BenchReport:
    """A report with these medians in milliseconds; ``waits`` by number of workers."""

    def timing(ms: float) -> dict:
        return times(10, (ms / 1e3,) * 5)

    facts = {"root": "r", "samples": 9, "storage": "delta", "record_bytes": 1, "shards": 1, "cores": 8}
    facts |= {"device": "cpu", "torch": "2", "batch_size": 10, "asked": 10, "step_ms": step_ms, "seed": 0}
    report = BenchReport(facts)
    report.stages = {name.replace("_", " "): timing(ms) for name, ms in stages.items()}
    for count, ms in waits.items():
        row = {
            "num_workers": count,
            "first_ms": 1.0,
            "wait": timing(ms),
            "step_wait": None,
            "data_wait_share": None,
        }
        if step_ms is not None:
            row |= {"step_wait": timing(ms), "data_wait_share": ms / (ms + step_ms)}
        report.workers.append(row)
    assert as_text(report).endswith(advice(report)[-1])
    return report


def test_the_fewest_workers_that_will_do() -> None:
    dear = {"pyg_collate": 900, "on_the_fly": 100}
    assert advice(made_up(85, {0: 0.34, 1: 0.1, 2: 0.1}, **CHEAP, **dear))[0] == (
        "0 workers; data wait 0.4 % of your 85 ms step"
    )
    assert advice(made_up(85, {0: 40, 1: 9, 2: 0.5, 4: 0.1}, **CHEAP, **dear))[0] == (
        "2 workers; data wait 0.58 % of your 85 ms step"
    )
    slow = {**CHEAP, "batch": 30.0}
    assert advice(made_up(100, {0: 100, 1: 25}, **slow, **dear))[0] == (
        "1 worker; data wait 20 % of your 100 ms step; reading a batch takes 30.0 ms"
    )
    assert advice(made_up(None, {0: 1.0, 1: 0.9}, **CHEAP, **dear))[0].startswith(
        "0 workers; a batch every 1.00 ms,"
    )
    assert advice(made_up(None, {0: 1.0, 1: 0.5}, **CHEAP, **dear))[0].startswith(
        "1 worker; a batch every 0.500 ms,"
    )


def test_what_a_training_costs_without_and_with_and_when_the_build_has_paid() -> None:
    report = made_up(None, {0: 0.1}, **CHEAP, pyg_collate=90, on_the_fly=270.3)
    assert investment(report) is None
    assert "epochs" not in "\n".join(advice(report))
    # 10,000 batches an epoch: 1 h without, 3 s with.
    report.facts |= {"samples": 100_000, "epochs": 1000, "build_seconds": 7200.0, "store_bytes": 5_000_000}
    found = investment(report)
    assert found is not None
    assert found["hours_without"] == pytest.approx(1000.83, rel=1e-4)
    assert found["hours_with"] == pytest.approx(1000 * 3 / 3600)
    assert found["hours_with_pyg_batches"] == pytest.approx(1000 * 203 / 3600)
    assert (found["hours_build"], found["bytes"], found["paid_after_epochs"]) == (2.0, 5_000_000, 2)
    said = "1,000 epochs: 1000 h 50 min of one core for data without the cache, 50 min 0 s with it"
    assert f"{said}, after 2 h 0 min to build 5.0 MB; it has paid after 2 epochs" in advice(report)
    report.stages["batch"] = report.stages["expand"]  # 20 ms, less than 360: still pays; and then more
    assert investment(report)["paid_after_epochs"] == 3  # type: ignore[index]
    report.stages["batch"] = times(10, (0.4,) * 5)
    assert investment(report)["paid_after_epochs"] is None  # type: ignore[index]
    assert "it never pays" in "\n".join(advice(report))
    del report.stages["on the fly"]
    assert investment(report)["hours_without"] is None  # type: ignore[index]
    assert "cannot be said: processing" in "\n".join(advice(report))


def test_whether_the_cache_helps() -> None:
    def told(step, **stages: float) -> str:
        return "\n".join(advice(made_up(step, {0: 0.1}, **{**CHEAP, **stages})))

    text = told(85, pyg_collate=900, on_the_fly=103)
    assert "the cache helps: a PyG batch costs 20.3 ms from the store, 1.00 s processed on the fly" in text
    assert "(49 times as long)" in text
    assert "expand=True adds 20.0 ms to a batch, 19 % of the time with your step" in text
    assert "need" not in text.replace("needs only the masks, 1.00 ms", "")
    text = told(85, pyg_collate=10, on_the_fly=2)
    assert (
        "the cache does not help models that take PyG batches here: a batch costs 15.0 ms from the store, 12.0 ms"
        in text
    )
    assert "it does help models on the shared graph: their batch costs 0.300 ms" in text
    assert "dataset[i] gains nothing: reading a sample costs 0.500 ms, processing it 0.200 ms" in text
    assert "1 worker could keep up with your step as well" in text
    assert "3 workers could keep up" in told(40, pyg_collate=60, on_the_fly=40)
    assert "you would wait 0.6 % of your step: the cache is not needed" in told(
        2000, pyg_collate=10, on_the_fly=2
    )
    assert "reading costs 9.00 ms cold and 0.300 ms warm: 9.6 %" in told(
        85, pyg_collate=9, on_the_fly=9, **{"batch, cold": 9.0}
    )

"""What must hold with GEARS itself (cell-gears 0.1.2), in a process of its own: ``python gears_checks.py FOLDER``.

Its data are made up and have the shape of real ones; the files that it downloads stand in its folder already. Nothing of it is
replaced. Each check's outcome is a line of ``FOLDER/outcomes.json``.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

VERSION = "0.1.2"
ROOT = Path(__file__).resolve().parents[2]
CELLS, GENES, BATCH = 360, 70, 24
CHECKS: dict[str, Callable[[Any], None]] = {}


def fetched() -> Path | None:
    """Directory to put on the path, or ``None`` where PyPI cannot be reached; fetched once per machine."""
    home = os.environ.get("GEARS_CLIENT_DIR") or Path.home() / ".cache" / "torchcell_cache_tests"
    place = Path(home) / f"gears-{VERSION}-py{sys.version_info[0]}{sys.version_info[1]}"
    if place.exists():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as work:
        pip = [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "1", "--timeout", "20")
        ]
        pip += ["install", "-q", "--no-deps", "--target", f"{work}/made", f"cell-gears=={VERSION}", "dcor"]
        if subprocess.run(pip, capture_output=True, timeout=180).returncode:
            return None
        if not place.exists():
            Path(work, "made").rename(place)
    return place


def check(function: Callable[[Any], None]) -> Callable[[Any], None]:
    CHECKS[function.__name__] = function
    return function


class Screen:
    """GEARS's own data of a small screen, and the same cells in our stores."""

    def __init__(self, folder: Path) -> None:
        import numpy as np
        from gears import PertData

        import torchcell_cache as tc
        from experiments.gears.made_up import screen, write_downloads
        from experiments.gears.stored import StoredPertData

        self.folder = folder
        write_downloads(folder / "data", GENES)
        np.random.seed(11)  # GEARS draws controls from numpy's global state
        self.theirs = PertData(str(folder / "data"))
        self.theirs.new_data_process("screen", adata=screen(CELLS, GENES))
        self.theirs.load(data_path=str(folder / "data" / "screen"))
        self.theirs.prepare_split(split="simulation", seed=1, train_gene_set_size=0.7)
        self.theirs.get_dataloader(batch_size=BATCH)
        write_downloads(folder / "ours", GENES)
        self.ours = StoredPertData(str(folder / "ours"))
        self.ours.new_data_process("screen", adata=screen(CELLS, GENES))
        self.ours.load(data_path=str(folder / "ours" / "screen"))
        self.ours.prepare_split(split="simulation", seed=1, train_gene_set_size=0.7)
        self.ours.get_dataloader(BATCH)
        whole = tc.PreprocessedDataset(folder / "ours" / "screen" / "store")
        self.pairs = tc.PairedCells(
            whole,
            table=self.their_draws(),
            per_category={n: getattr(self.ours, n) for n in ("pert_idx", "de_idx")} | {"pert": str},
        )

    def their_draws(self) -> Any:
        """The control of each cell in GEARS's list, by repeating its draws."""
        import numpy as np

        condition = self.theirs.adata.obs["condition"].to_numpy()
        controls = np.flatnonzero(condition == "ctrl")
        out = np.arange(len(condition), dtype=np.int32)[:, None]
        np.random.seed(11)
        for name in self.theirs.adata.obs["condition"].unique():
            if name != "ctrl":
                for cell in np.flatnonzero(condition == name):
                    out[cell] = controls[np.random.randint(0, len(controls), 1)]
        return out

    def cells(self, part: str) -> Any:
        """Indices of a part's cells, in the order of GEARS's list."""
        import numpy as np

        names = self.pairs.names("condition")
        return np.concatenate([np.flatnonzero(names == name) for name in self.theirs.set2conditions[part]])

    def their_list(self, part: str) -> list[Any]:
        return [g for name in self.theirs.set2conditions[part] for g in self.theirs.dataset_processed[name]]

    def generic(self) -> dict[str, Any]:
        """GEARS's lists as generic stores."""
        import torchcell_cache as tc

        return {
            part: tc.build(
                self.folder / f"generic-{part}", source=self.their_list(part), processor=None, progress=False
            )
            for part in ("train", "val", "test")
        }

    def trained(self, loaders: dict[str, Any], epochs: int = 2) -> list[str]:
        """What ``GEARS.train`` says with some loaders, every number of it."""
        import torch
        from gears import GEARS

        torch.manual_seed(5)
        given = self.theirs.dataloader
        said = io.StringIO()
        try:
            self.theirs.dataloader = loaders
            with contextlib.redirect_stderr(said):
                model = GEARS(self.theirs, device="cpu")
                model.model_initialize(hidden_size=8, decoder_hidden_size=4)
                torch.manual_seed(6)
                model.train(epochs=epochs, lr=1e-2)
        finally:
            self.theirs.dataloader = given
        lines = [line for line in said.getvalue().splitlines() if any(c.isdigit() for c in line)]
        weights = sum(float(value.double().abs().sum()) for value in model.best_model.state_dict().values())
        return [*lines, repr(weights)]

    def loaders(self, of: Callable[[str], Any], make: Any = None) -> dict[str, Any]:
        """GEARS's three loaders, as its own ``get_dataloader`` makes them."""
        from torch_geometric.loader import DataLoader

        make = make or DataLoader
        return {
            "train_loader": make(of("train"), batch_size=BATCH, shuffle=True, drop_last=True),
            "val_loader": make(of("val"), batch_size=BATCH, shuffle=True),
            "test_loader": make(of("test"), batch_size=BATCH, shuffle=False),
        }


def same(one: Any, other: Any) -> bool:
    """Equal in type and to the bit, inside lists too."""
    import numpy as np
    import torch

    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(np.array_equal(one, other))


def assert_same(got: Any, want: Any) -> None:
    ours, theirs = got._store._mapping, want._store._mapping
    assert list(ours) == list(theirs), (list(ours), list(theirs))
    for name, value in theirs.items():
        assert same(ours[name], value), (name, ours[name], value)


@check
def every_pair_is_theirs(screen: Screen) -> None:
    count = 0
    for part in ("train", "val", "test"):
        ours = screen.pairs[screen.cells(part)]
        theirs = screen.their_list(part)
        assert len(ours) == len(theirs)
        for got, want in zip([ours[k] for k in range(len(ours))], theirs, strict=True):
            assert_same(got, want)
            count += 1
    assert count == len(screen.pairs) == CELLS


@check
def every_sample_of_a_generic_store_is_theirs(screen: Screen) -> None:
    for part, ds in screen.generic().items():
        for got, want in zip([ds[k] for k in range(len(ds))], screen.their_list(part), strict=True):
            assert_same(got, want)


@check
def every_batch_is_theirs(screen: Screen) -> None:
    """Shared batches expanded, PyG's loader over pairs, ``x`` and ``y`` as matrices."""
    import torch
    from torch_geometric.loader import DataLoader

    import torchcell_cache as tc

    theirs, ours = screen.their_list("train"), screen.pairs[screen.cells("train")]
    order = tc.DistributedCacheSampler(ours, BATCH, shuffle=True, seed=3)
    for epoch in range(2):
        expanded = tc.CacheLoader(ours, BATCH, shuffle=True, seed=3, expand=True)
        matrices = tc.CacheLoader(ours, BATCH, shuffle=True, seed=3)
        plain = DataLoader(ours, batch_sampler=order)
        for loader in (order, expanded, matrices):
            loader.set_epoch(epoch)
        wanted = list(DataLoader(theirs, batch_sampler=order))
        order.set_epoch(epoch)
        for want, one, two, shared in zip(wanted, expanded, plain, matrices, strict=True):
            assert_same(one, want)
            assert_same(two, want)
            assert torch.equal(shared.y, want.y)
            assert torch.equal(shared.x.reshape(-1, 1), want.x)
            assert shared.pert == want.pert


@check
def training_logs_the_same_numbers(screen: Screen) -> None:
    """From GEARS's lists, from generic stores of them, from paired cells; through PyG's loader, with one seed."""
    stores = screen.generic()
    wanted = screen.trained(screen.loaders(screen.their_list))
    assert len(wanted) > 10, wanted
    assert screen.trained(screen.loaders(stores.__getitem__)) == wanted
    assert screen.trained(screen.loaders(lambda part: screen.pairs[screen.cells(part)])) == wanted


@check
def training_from_our_loader_logs_the_same_numbers(screen: Screen) -> None:
    """``CacheLoader`` in its own order against GEARS's list in that order."""
    from torch_geometric.loader import DataLoader

    import torchcell_cache as tc

    parts = ("train", "val", "test")
    views = {part: screen.pairs[screen.cells(part)] for part in parts}
    settings = {part: {"shuffle": part != "test", "seed": 8, "drop_last": part == "train"} for part in parts}
    lists = {
        f"{part}_loader": DataLoader(
            screen.their_list(part),
            batch_sampler=tc.DistributedCacheSampler(views[part], BATCH, **settings[part]),
        )
        for part in parts
    }
    loaders = {
        f"{part}_loader": tc.CacheLoader(views[part], BATCH, expand=True, **settings[part]) for part in parts
    }
    assert screen.trained(loaders) == screen.trained(lists)


@check
def one_line_takes_gears_to_a_store(screen: Screen) -> None:
    """``StoredPertData`` in the place of ``PertData``: the same split and cells, nothing large pickled, training runs."""
    ours, theirs = screen.ours, screen.theirs
    assert ours.set2conditions == theirs.set2conditions
    for part in ("train", "val", "test"):
        mine = ours.cells_of(theirs.set2conditions[part])
        for got, want in zip([mine[k] for k in range(len(mine))], screen.their_list(part), strict=True):
            got.x = want.x  # another draw of the control
            assert_same(got, want)
    pool = set(ours.dataset_processed.controls().reshape(-1).tolist())
    assert {ours.dataset_processed.names("condition")[k] for k in pool} == {"ctrl"}
    pickled = screen.folder / "ours" / "screen" / "data_pyg" / "cell_graphs.pkl"
    size = pickled.stat().st_size
    assert size < (screen.folder / "data" / "screen" / "data_pyg" / "cell_graphs.pkl").stat().st_size / 10, (
        size
    )
    again = pickle.loads(pickled.read_bytes())
    assert_same(again[3], ours.dataset_processed[3])
    assert len(screen.trained(ours.dataloader, epochs=1)) > 5


def main(folder: Path) -> None:
    place = fetched()
    assert place is not None
    import pandas

    # GEARS takes rows of a sparse matrix by a Series of bools; scipy asks it for this since pandas has it no more.
    pandas.Series.nonzero = lambda flags: flags.to_numpy().nonzero()  # type: ignore[attr-defined]
    sys.path[:0] = [str(ROOT), str(place)]
    os.chdir(folder)  # GEARS writes beside its caller too
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        screen = Screen(folder)
    outcomes, began = {}, time.monotonic()
    for name, function in CHECKS.items():
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                function(screen)
            outcomes[name] = "ok"
            print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr)
        except Exception:
            outcomes[name] = traceback.format_exc()
    (folder / "outcomes.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The pictures of ``docs/img/`` that show what users see, made again: ``python docs/pictures.py [names]``.

Needs chromium, and the packages of the extras ``plot`` and ``docs``. Names: card, notebook, plot, bench, terminal, site.
"""

import html
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import torchcell_cache as tc

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "img"
_COLOURS = {"31;1": "#ff7b72", "36": "#56d4dd", "32": "#7ee787", "33": "#e3b341"}
_PAGE = "<meta charset=utf-8><body style='margin:16px;font:15px system-ui,sans-serif'>"


def screenshot(page: Path, name: str, width: int, height: int) -> None:
    """A page as a browser shows it."""
    call = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    size = f"--window-size={width},{height}"
    subprocess.run(
        [*call, size, f"--screenshot={OUT / name}", page.as_uri()], check=True, capture_output=True
    )
    image = plt.imread(OUT / name)
    rows = np.flatnonzero((image != image[-1, -1]).any((1, 2)))
    plt.imsave(OUT / name, image[: rows[-1] + 17])  # without what is empty below


def store() -> tc.PreprocessedDataset:
    """A store that looks like a lab's: 600 genes, three networks, singles to triples with fitness."""
    random = np.random.default_rng(0)
    names = [f"Y{chr(65 + k // 100)}L{k % 100:03d}C" for k in range(600)]
    hubs = random.zipf(1.7, 600).clip(1, 200)
    chosen = {
        name: random.choice(600, (2, count), p=hubs / hubs.sum())
        for name, count in (("physical", 4000), ("regulatory", 1500), ("genetic", 9000))
    }
    graphs = {name: [(names[a], names[b]) for a, b in ends.T if a != b] for name, ends in chosen.items()}
    cell = tc.sources.cell_graph(names, graphs)
    knockouts = [
        random.choice(names, size, replace=False).tolist()
        for size in random.choice(4, 5000, p=[0.01, 0.2, 0.3, 0.49])
    ]
    fitness = 1.02 - random.gamma(1.2, 0.09, 5000) * np.array([len(row) for row in knockouts])
    fitness[random.random(5000) < 0.02] = np.nan
    labels = {"fitness": fitness.clip(0), "interaction": random.normal(0, 0.05, 5000)}
    source = tc.PerturbationTable(cell, knockouts, phenotypes=labels, nan="keep")
    return tc.build(
        "stores/knockouts",
        source=source,
        processor=tc.LazySubgraphRepresentation(),
        storage="delta",
        progress=False,
    )


def card(ds: tc.PreprocessedDataset) -> None:
    ds.card("card.html", splits=tc.split_by_perturbation(ds, seed=1, progress=False))
    screenshot(Path("card.html").resolve(), "card.png", 1060, 1215)


def notebook(ds: tc.PreprocessedDataset) -> None:
    splits = tc.split_by_perturbation(ds, stratify="fitness", progress=False)
    cells = {
        'ds = tc.PreprocessedDataset("stores/knockouts")\nds': ds,
        "ds.read_batch(range(64))": ds.read_batch(range(64)),
        'tc.split_by_perturbation(ds, stratify="fitness")': splits,
    }
    inner = "".join(
        f"<pre style='background:#f5f5f5;border:1px solid #ddd;padding:8px;margin:14px 0 8px'>{html.escape(code)}</pre>"
        f"{value._repr_html_()}"
        for code, value in cells.items()
    )
    Path("notebook.html").write_text(_PAGE + inner.replace(str(Path.cwd()), "/home/you"), encoding="utf-8")
    screenshot(Path("notebook.html").resolve(), "notebook.png", 1060, 2000)


def plot(ds: tc.PreprocessedDataset) -> None:
    ds.plot(OUT / "plot.png")


def bench(ds: tc.PreprocessedDataset) -> None:
    from torchcell_cache.cli import main

    with redirect_stdout(io.StringIO()):
        main(
            [
                "bench",
                "root=stores/knockouts",
                "step_ms=20",
                "seconds=2",
                "workers=[0,1,2]",
                f"plot={OUT / 'bench.png'}",
            ]
        )


def terminal(ds: tc.PreprocessedDataset) -> None:
    lines = []
    for command in (
        "info root=stores/knockouts bins=6",
        "verify root=stores/knockouts",
        "info rot=stores/knockouts",
    ):
        call = [
            "script",
            "-qc",
            f"stty rows 40 cols 130; {sys.executable} -m torchcell_cache {command}",
            "/dev/null",
        ]  # on a terminal
        done = subprocess.run(call, capture_output=True, check=False, env={**os.environ, "TERM": "xterm"})
        last = re.sub(r"[^\n]*\r(?!\n)", "", done.stdout.decode())  # of a progress bar what stays
        said = last.replace(str(Path.cwd()), "/home/you").splitlines()
        long = [*said[:13], "...", *said[-9:]] if len(said) > 24 else said
        lines += [f"$ torchcell-cache {command}", *long, ""]
    text = re.sub(r"\x1b\[0m", "</b>", html.escape("\n".join(lines)))
    text = re.sub(r"\x1b\[([\d;]+)m", lambda found: f"<b style='color:{_COLOURS[found[1]]}'>", text)
    Path("terminal.html").write_text(
        f"<meta charset=utf-8><body style='margin:0;background:#16181c;color:#d8dee9'><pre style='padding:14px;margin:0;"
        f"white-space:pre-wrap;font:13px/1.35 DejaVu Sans Mono,monospace'>{text}</pre>",
        encoding="utf-8",
    )
    screenshot(Path("terminal.html").resolve(), "terminal.png", 1080, 18 * len(lines) + 80)


def site(ds: tc.PreprocessedDataset) -> None:
    call = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(Path("site").resolve()),
    ]
    subprocess.run(call, cwd=ROOT, check=True, capture_output=True)
    screenshot(Path("site/index.html").resolve(), "site.png", 1280, 1000)
    screenshot(Path("site/api/index.html").resolve(), "reference.png", 1280, 1000)


PICTURES: dict[str, Callable[[tc.PreprocessedDataset], None]] = {
    "card": card, "notebook": notebook, "plot": plot, "bench": bench, "terminal": terminal, "site": site,
}  # fmt: skip

if __name__ == "__main__":
    os.environ["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        made = store()
        for name in sys.argv[1:] or PICTURES:
            PICTURES[name](made)
            print(name, flush=True)

"""Run every step of the README once and print its seconds and bytes as a table.

    python experiments/006-kuzmin-tmi/scripts/walkthrough.py [out=DIR] [num_samples=N] [steps=20] [database=true] [write=false]

``num_samples`` takes a part of the knock-outs, ``steps`` is the number of training steps that are timed in each mode,
``database=false`` leaves the graph database out, ``write=true`` puts the table into README.md. Everything is written
below ``out`` (a temporary directory that is removed afterwards, by default). The seconds are those of whole commands,
start of Python included.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from arguments import EXPERIMENT

from torchcell_cache.errors import CacheError
from torchcell_cache.sources.yeast.folder import yeast_folder

MODES = ("on_the_fly", "preprocessed", "shared")
KEYS = {"out": "", "num_samples": "", "steps": "20", "database": "true", "write": "false"}


class Walk:
    """Steps, one command each.

    Args:
        out: Directory the commands run in.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.rows = out, []
        self.digests: set[str] = set()

    def run(self, script: str, *arguments: str) -> tuple[float, str]:
        """Seconds and output of a command."""
        command = [sys.executable, str(EXPERIMENT / "scripts" / script), *arguments]
        print("$", "python", f"scripts/{script}", *arguments, file=sys.stderr, flush=True)
        begun = time.perf_counter()
        done = subprocess.run(command, cwd=self.out, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{script} ended with {done.returncode}")
        print(done.stdout, end="", file=sys.stderr)
        self.digests.update(re.findall(r"content digest (\w+)", done.stdout))
        return time.perf_counter() - begun, done.stdout

    def note(self, step: str, seconds: float | None, path: Path | None, more: str = "") -> None:
        took = "-" if seconds is None else f"{seconds:.1f}"
        self.rows.append((step, took, f"{size_bytes(path):,}" if path else "-", more))

    def table(self) -> str:
        lines = ["| step | seconds | bytes on disk | |", "|---|---:|---:|---|"]
        return "\n".join(lines + [f"| {' | '.join(row)} |" for row in self.rows])


def size_bytes(path: Path) -> int:
    """Size of a file, or of all files of a directory."""
    return (
        path.stat().st_size
        if path.is_file()
        else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    )


def walk(out: Path, num_samples: str, steps: int, database: bool) -> Walk:
    """All steps, in the order of the README."""
    walked = Walk(out)
    part = [f"data.source.num_samples={num_samples}"] if num_samples else []
    name, below = f"yeast-{num_samples or 146_207}", out / "outputs" / "006-kuzmin-tmi"
    walked.note("raw files", None, yeast_folder())
    if database:
        took, said = walked.run("load_database.py", *([f"num_samples={num_samples}"] if num_samples else []))
        walked.note("load the database", took, below / "database", said.strip().rpartition(": ")[2])
        took, _ = walked.run("preprocess_lazy_dataset.py", "data=yeast_database", "progress=false")
        raw, store = (below / "yeast-database" / kind for kind in ("raw", "processed"))
        walked.note("query, keep the records", took, raw, "and preprocess, one command")
        walked.note("the store it makes", None, store)
    took, _ = walked.run("preprocess_lazy_dataset.py", *part, "progress=false")
    walked.note("preprocess from the table", took, below / name / "processed")
    for mode in MODES:
        extra = ["progress=false", "resume=false", f"stop_after={steps}"]
        took, said = walked.run("train.py", mode, *part, *extra)
        rate = float(re.search(r"([\d.]+) it/s", said)[1])
        walked.note(f"train, {mode}: before the first step", took - steps / rate, None)
        waiting = said.partition("it/s, ")[2].strip()
        walked.note(
            f"train, {mode}: {steps} steps of 28", steps / rate, None, f"{1 / rate:.2f} s per step, {waiting}"
        )
    return walked


def write_figures(table: str) -> None:
    """Put a table between the marks in the README."""
    readme = EXPERIMENT / "README.md"
    before, start, rest = readme.read_text(encoding="utf-8").partition("<!-- figures:start -->\n")
    _, end, after = rest.partition("<!-- figures:end -->")
    if not start or not end:
        raise SystemExit(f"{readme} has no place for figures")
    readme.write_text(f"{before}{start}{table}\n{end}{after}", encoding="utf-8")


@contextlib.contextmanager
def directory(named: str) -> Iterator[Path]:
    if named:
        Path(named).mkdir(parents=True, exist_ok=True)
        yield Path(named).resolve()
        return
    with tempfile.TemporaryDirectory(prefix="kuzmin-") as path:
        yield Path(path)


def main(arguments: list[str]) -> int:
    given = {**KEYS, **dict(argument.partition("=")[::2] for argument in arguments)}
    if given.keys() != KEYS.keys():
        print(__doc__, file=sys.stderr)
        return 0 if "--help" in arguments else 2
    # The commands run elsewhere.
    os.environ["TORCHCELL_CACHE_YEAST"] = str(yeast_folder().resolve())
    with directory(given["out"]) as out:
        walked = walk(out, given["num_samples"], int(given["steps"]), given["database"] == "true")
    print(walked.table())
    if given["write"] == "true":
        write_figures(walked.table())
    if given["database"] == "true" and not given["num_samples"]:
        same = len(walked.digests) == 1
        print(
            f"\nThe stores from the database and from the table are {'the same' if same else 'NOT THE SAME'}."
        )
        return 0 if same else 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CacheError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.code)

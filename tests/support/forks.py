"""Work in forked processes: cheap, because torch is loaded already, and killable."""

import json
import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path


def start(work, place: Path, name: str, **environment):
    """Run ``work()`` in a child; what it returns or raises goes to ``place/name.json``, what it prints to ``name.err``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process = multiprocessing.get_context("fork").Process(
            target=_run, args=(work, place / name, environment)
        )
        process.start()
    return process


def _run(work, path: Path, environment) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    os.environ.update({key: str(value) for key, value in environment.items()})
    with path.with_suffix(".err").open("w") as stream:
        sys.stderr = stream
        try:
            answer = {"value": work()}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": type(error).__name__, "text": str(error)}
    path.with_suffix(".json").write_text(json.dumps(answer))


def finish(processes, seconds: float = 60) -> None:
    """Wait for all of them."""
    for process in processes:
        process.join(seconds)
        assert process.exitcode is not None, "a process did not end"


def together(works, place: Path, environments=None):
    """Run functions at the same time; their answers in order."""
    place.mkdir(exist_ok=True)
    environments = environments or [{} for _ in works]
    finish([start(work, place, str(k), **environments[k]) for k, work in enumerate(works)])
    return [json.loads((place / f"{k}.json").read_text()) for k in range(len(works))]


def printed(place: Path) -> str:
    """What all of them wrote on stderr."""
    return "".join(path.read_text() for path in sorted(place.glob("*.err")))

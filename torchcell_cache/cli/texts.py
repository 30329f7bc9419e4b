"""Help texts and suggestions. The help of a command is its settings file, comments and all, so the two cannot differ."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import resources

GROUPS = {
    "source": ("ecoli", "yeast", "table", "anndata", "neo4j", "python", "none"),
    "processor": ("lazy", "subgraph", "perturbation", "khop", "python", "none"),
}
"""Choices of ``source=`` and ``processor=``."""

WITH_GROUPS = ("preprocess", "append", "update", "verify", "repair")

_EXIT_CODES = (
    "exit codes: 0 fine, 2 usage, 65 corrupt or stale, 73 cannot write, 75 interrupted (same command resumes)"
)


def overview() -> str:
    """Help of the program."""
    lines = ["torchcell-cache <command> key=value ...", "", "commands:"]
    lines += [f"  {name:<12}{text}" for name, text in COMMANDS.items()]
    lines += ["", "torchcell-cache <command> --help lists the keys of a command", _EXIT_CODES]
    return "\n".join(lines)


def config_text(name: str) -> str:
    """Text of a settings file."""
    text = (resources.files("torchcell_cache.cli.conf") / f"{name}.yaml").read_text(encoding="utf-8")
    return text.replace("???       ", "(required)")


def command_help(command: str) -> str:
    """Help of one command: its keys with their defaults."""
    parts = [f"torchcell-cache {command} key=value ...", "", _without_defaults(config_text(command))]
    if command in WITH_GROUPS:
        for group, names in GROUPS.items():
            chosen = [
                name for name in names if name != "none" or command != "preprocess" or group == "processor"
            ]
            parts += [f"{group}={'|'.join(chosen)}, with these keys:", ""]
            for name in chosen:
                text = config_text(f"{group}/{name}").replace("\n{}\n", "\n")
                parts.append("\n".join(_prefixed(line, group) for line in text.splitlines()) + "\n")
    return "\n".join([*parts, _EXIT_CODES])


def _prefixed(line: str, group: str) -> str:
    return line if line.startswith("#") or not line else f"{group}.{line}"


def _without_defaults(text: str) -> str:
    lines = text.splitlines()
    if "defaults:" in lines:
        first = lines.index("defaults:")
        last = next(k for k in range(first + 1, len(lines)) if not lines[k].startswith("  - "))
        lines = lines[:first] + lines[last:]
    return "\n".join(lines) + "\n"


def suggestion(word: str, valid: Iterable[str]) -> str:
    """``; did you mean 'x'? valid are ...`` for an error message."""
    names = list(valid)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{hint} valid: {', '.join(names)}"


COMMANDS = {
    "preprocess": "build a store from a source, or continue an interrupted build",
    "append": "add samples to a store; what is there is shared, not made again",
    "update": "bring a store up to date with a changed source; only what can differ is computed",
    "info": "what is in a store: sizes, schema, fingerprint, histograms",
    "verify": "check a store; level=full reads every record, source=... compares with the source",
    "repair": "make damaged files again",
    "status": "how far a build is, from any process or node",
    "stage": "copy a store to local disk, verified; prints the copy's root",
    "push": "put a store into object storage (s3://, gs://, az://, file://)",
    "pull": "copy a store from object storage into a directory",
    "gc": "remove old generations of a store",
    "select": "choose samples by their columns: an index file or a smaller store",
    "split": "training, validation and test samples without leaks",
    "bench": "where the time of a batch goes, how many workers to use, whether the cache helps",
}

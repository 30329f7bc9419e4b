"""``torchcell-cache init``: files for a project of the user's own."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable

from torchcell_cache.cli.words import say_result
from torchcell_cache.core.failures import storage_errors
from torchcell_cache.core.files import make_dirs_durable, write_atomic
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import SettingError

_NEXT = {
    "train": "pip install lightning && python train.py epochs=5",
    "slurm": "ROOT=stores/knockouts RUN_DIR=runs/first slurm/submit.sh source=python source.file=knockouts.py -- epochs=20",
}


def init(what: str, to: str, *, overwrite: bool = False, json: bool = False) -> None:
    """Files to start from: train.py with Lightning and Hydra, or jobs for SLURM.

    They are yours to change, and need nothing but the installed package. A file that is there and differs is not replaced.

    Args:
        what: train (train.py, conf/config.yaml, knockouts.py) or slurm (slurm/submit.sh and the jobs it submits).
        to: Directory of the project.
        overwrite: Replace files that differ.
        json: Print the result as JSON.

    Example:
        torchcell-cache init train myproject
        torchcell-cache init slurm myproject
    """
    place = local_path(to, "to")
    inside = place / "slurm" if what == "slurm" else place
    files = {inside / name: text for name, text in _templates(what).items()}
    with storage_errors(place):
        differ = [
            path
            for path, text in files.items()
            if path.exists() and path.read_text("utf-8", "replace") != text
        ]
    if differ and not overwrite:
        names = ", ".join(str(path.relative_to(place)) for path in differ)
        raise SettingError(
            f"{place} has {names} already, with other content",
            path=place,
            fix="another directory, or overwrite=true",
        )
    for path, text in files.items():
        make_dirs_durable(path.parent)
        write_atomic(path, text.encode(), mode=0o755 if path.suffix == ".sh" else 0o644)
    made = [str(path) for path in files]
    say_result(json, "\n".join([*made, f"next: cd {place} && {_NEXT[what]}"]), files=made)


def _templates(what: str) -> dict[str, str]:
    """Texts by name; those of Python files are stored with another ending."""

    def walk(folder: Traversable, prefix: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for each in sorted(folder.iterdir(), key=lambda entry: entry.name):
            name = f"{prefix}{each.name}"
            if each.is_dir():
                found |= walk(each, f"{name}/")
            else:
                found[name.removesuffix(".txt")] = each.read_text(encoding="utf-8")
        return found

    return walk(resources.files("torchcell_cache") / "cli" / "templates" / what, "")

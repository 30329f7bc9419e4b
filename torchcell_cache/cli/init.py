"""``torchcell-cache init``: files for a project of the user's own."""

from __future__ import annotations

from pathlib import Path

from torchcell_cache.cli.commands import Said
from torchcell_cache.core.choices import Project
from torchcell_cache.core.failures import storage_errors
from torchcell_cache.core.files import make_dirs_durable, write_atomic
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import SettingError

_TEMPLATES = Path(__file__).parent / "templates"
"""Python files stand here with another ending."""

_NEXT = {
    "train": "pip install lightning && python train.py epochs=5",
    "slurm": "ROOT=stores/knockouts RUN_DIR=runs/first slurm/submit.sh source=python source.file=knockouts.py -- epochs=20",
}


def init(what: Project, to: str, *, overwrite: bool = False) -> Said:
    """Files to start from: train.py with Lightning and Hydra, or jobs for SLURM.

    They are yours to change, and need nothing but the installed package. A file that is there and differs is not replaced.

    Args:
        what: train (train.py, conf/config.yaml, knockouts.py) or slurm (slurm/submit.sh and the jobs it submits).
        to: Directory of the project.
        overwrite: Replace files that differ.

    Example:
        torchcell-cache init train myproject
        torchcell-cache init slurm myproject
    """
    place, ours = local_path(to, "to"), _TEMPLATES / what
    inside = place / "slurm" if what == "slurm" else place
    paths = [path for path in sorted(ours.rglob("*")) if path.is_file()]
    files = {inside / str(path.relative_to(ours)).removesuffix(".txt"): path.read_bytes() for path in paths}
    with storage_errors(place):
        differ = [path for path, data in files.items() if path.exists() and path.read_bytes() != data]
    if differ and not overwrite:
        names = ", ".join(str(path.relative_to(place)) for path in differ)
        text = f"{place} has {names} already, with other content"
        raise SettingError(text, path=place, fix="another directory, or overwrite=true")
    for path, data in files.items():
        make_dirs_durable(path.parent)
        write_atomic(path, data, mode=0o755 if path.suffix == ".sh" else 0o644)
    written = [str(path) for path in files]
    return "\n".join([*written, f"next: cd {place} && {_NEXT[what]}"]), {"files": written}

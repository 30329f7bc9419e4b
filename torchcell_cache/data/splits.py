"""``Splits``: named parts of a store, saved with the fingerprint they belong to."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from torchcell_cache.core.checks import suggestion, truth
from torchcell_cache.core.failures import storage_errors
from torchcell_cache.core.files import fsync_dir, make_dirs_durable
from torchcell_cache.core.markup import shares, table, text
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.core.urls import local_path
from torchcell_cache.data.dataset import PreprocessedDataset
from torchcell_cache.data.dividing import PARTS, first_of_set
from torchcell_cache.data.index_file import (
    check_identity,
    entry_of,
    into_view,
    of_store,
    read_document,
    read_positions,
    save_indices,
    sidecar_of,
    write_document,
)
from torchcell_cache.data.select import perturbed_of
from torchcell_cache.data.view import column_of
from torchcell_cache.errors import (
    CacheError,
    CacheNotFoundError,
    CorruptManifestError,
    FormatError,
    SettingError,
)

SPLITS_FILE = "splits.json"
FORMAT = "torchcell_cache splits"
_AGAIN = "split again: the same seed gives the same parts"


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """Parts of a dataset, and groups within them.

    ``splits["train"]`` and ``splits["test_unseen1"]`` are indices into :attr:`dataset`, ``[n] int64`` ascending;
    ``splits.view("train")`` is the view of them.

    Attributes:
        dataset: The dataset that was split.
        parts: Indices by name; disjoint, and together every sample of the dataset.
        groups: Indices of groups within the parts, such as ``test_unseen1``.
        made_by: How the split was made, plain JSON values.

    Example:
        >>> splits = tc.split_random(ds, (0.5, 0.25, 0.25), progress=False)
        >>> splits.save("split").name, len(tc.Splits.load("split", ds).train)
        ('split', 6)
    """

    dataset: PreprocessedDataset = field(repr=False)
    parts: dict[str, Int64Array] = field(repr=False)
    groups: dict[str, Int64Array] = field(default_factory=dict, repr=False)
    made_by: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Int64Array:
        found = self.parts.get(name, self.groups.get(name)) if isinstance(name, str) else None
        if found is None:
            raise SettingError(f"the split has no part {name!r}{suggestion(str(name), self.names)}")
        return found

    @property
    def names(self) -> list[str]:
        """Names of all parts and groups."""
        return [*self.parts, *self.groups]

    @property
    def train(self) -> Int64Array:
        """Indices of the training samples."""
        return self["train"]

    @property
    def val(self) -> Int64Array:
        """Indices of the validation samples."""
        return self["val"]

    @property
    def test(self) -> Int64Array:
        """Indices of the test samples."""
        return self["test"]

    def view(self, name: str) -> PreprocessedDataset:
        """A part or group as a view of the dataset."""
        return self.dataset[self[name]]

    def summary(self) -> str:
        """A table: samples of each part and group, their share, and the mean of the first label."""
        label, rows = self._rows()
        lines = [f"{'part':<22}{'samples':>10}{'share':>9}" + (f"  mean {label}" if label else "")]
        for name, count, share, mean in rows:
            inner = "  " * (name in self.groups) + name
            lines.append(f"{inner:<22}{count:>10,}{share:>9.1%}" + (f"  {mean}" if label else ""))
        return "\n".join(lines)

    def _rows(self) -> tuple[str | None, list[tuple[str, int, float, str]]]:
        """The first label, and of each part and group its name, samples, share and mean label."""
        columns, total = self.dataset.columns, max(len(self.dataset), 1)
        labels = (*self.dataset.label_columns.values(), "y")
        label = next((name for name in labels if name in columns and columns[name].ndim == 1), None)
        out = []
        for name in self.names:
            rows = self[name]
            values = np.asarray(columns[label][rows] if label else [], dtype=np.float64)
            values = values[~np.isnan(values)]
            out.append((name, len(rows), len(rows) / total, f"{values.mean():.4g}" if len(values) else "-"))
        return label, out

    def _repr_html_(self) -> str:
        label, rows = self._rows()
        shown = [(name, count, f"{share:.1%}", mean) for name, count, share, mean in rows]
        bar = shares({name: len(part) for name, part in self.parts.items()})
        notes = "".join(f"<br>{text(note)}" for note in self.notes)
        head = ("part", "samples", "share", f"mean {label or 'label'}")
        return f"{table([('parts', bar)], title='Splits')}{table(shown, head)}{notes}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to know about the split, in plain lines: parts that came out empty, sets that several parts share."""
        shares = [self.made_by.get(key) or [] for key in ("fractions", "seen_fractions")]
        asked = PARTS if len(shares[0]) == 3 else (PARTS[0], PARTS[2])
        wanted = [name for k, name in enumerate(asked) if any(k < len(s) and s[k] > 0 for s in shares)]
        why = f"its share of {len(self.dataset):,} samples came to none; a larger share gives it some"
        if "column" in self.made_by:
            why = f"no {self.made_by['column']} is left for it"
        lines = [f"{name} is empty: {why}" for name in wanted if not len(self.parts.get(name, ()))]
        if (column := self.made_by.get("column")) is not None:
            values = column_of(self.dataset, column, "column")
            if nameless := int(np.count_nonzero(values != values)):
                lines.append(f"{nameless:,} samples have no {column} and are one group")
        part = np.full(len(self.dataset), -1, dtype=np.int64)
        for k, rows in enumerate(self.parts.values()):
            part[rows] = k
        if self.dataset.generation.table is not None:
            first = first_of_set(*perturbed_of(self.dataset))
            if divided := len(np.unique(first[part != part[first]])):
                lines.append(
                    f"{divided:,} perturbed set{'s have' if divided > 1 else ' has'} samples in several parts; "
                    "split_by_perturbation keeps each in one"
                )
        return tuple(lines)

    def report(self) -> str:
        """:meth:`summary`, followed by the notes."""
        return "\n".join([self.summary(), *self.notes])

    def said(self, progress: bool) -> Splits:
        """This split, its notes said on stderr by one rank unless ``progress`` is false."""
        notes = self.notes if truth("progress", progress) else ()
        if notes:
            from torchcell_cache.core.progress import Console  # training that reads a split needs no builder

            Console(True).notes(notes)
        return self

    def save(self, directory: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the split: an index file per part and group, and ``splits.json``, which makes it complete.

        The same split again is no replacement: what is there already is left as it is.

        Args:
            directory: Directory to be; made if it is not there.
            overwrite: Replace a split that is there.

        Raises:
            SettingError: If another one is there.
            StorageError: If it cannot be written.
        """
        where = local_path(directory, "directory")
        document, listed = where / SPLITS_FILE, self._entries()
        if not truth("overwrite", overwrite) and document.exists():
            with contextlib.suppress(CacheError, IndexError):
                if Splits.load(where, self.dataset)._entries() == listed:
                    return where
            raise SettingError(
                f"{where} holds another split already", path=where, fix="overwrite=True, or another directory"
            )
        make_dirs_durable(where)
        with storage_errors(where):
            if document.exists():  # without it the directory is no split, whatever happens below
                old: dict[str, Any] = {}
                with contextlib.suppress(CorruptManifestError, FormatError):
                    old = read_splits_file(where)
                document.unlink()
                fsync_dir(where)
                for name in [*old.get("parts", ()), *old.get("groups", ())]:
                    (where / f"{name}.npy").unlink(missing_ok=True)
                    sidecar_of(where / f"{name}.npy").unlink(missing_ok=True)
        for name in self.names:
            how = {**self.made_by, "part": name}
            save_indices(where / f"{name}.npy", self[name], self.dataset, made_by=how)
        write_document(document, FORMAT, self.dataset.generation, self.made_by, **listed)
        return where

    def _entries(self) -> dict[str, dict[str, Any]]:
        """What tells the samples of each part and group from others."""
        at, kinds = self.dataset.positions, {"parts": self.parts, "groups": self.groups}
        return {kind: {n: entry_of(at(rows)) for n, rows in sets.items()} for kind, sets in kinds.items()}

    @classmethod
    def load(cls, directory: str | os.PathLike[str], dataset: PreprocessedDataset) -> Splits:
        """Read a split for the store it was made for, or for one with the same samples.

        Args:
            directory: Where it was saved.
            dataset: The store, or a view that has all its samples.

        Raises:
            CacheNotFoundError: If there is no split.
            StaleCacheError: If it was made for another store, or a file changed since.
            CorruptManifestError: If ``splits.json`` is damaged.
        """
        of_store("Splits.load", dataset)
        where = local_path(directory, "directory")
        document = read_splits_file(where)
        check_identity(document["store"], dataset.generation, where / SPLITS_FILE)
        sets: dict[str, dict[str, Int64Array]] = {"parts": {}, "groups": {}}
        for kind, found in sets.items():
            for name, entry in sorted(document[kind].items(), key=lambda item: _order(item[0])):
                path = where / f"{name}.npy"
                positions = read_positions(path, dataset.generation, entry, SPLITS_FILE, _AGAIN)
                found[name] = into_view(dataset, positions, str(path))
        return cls(dataset, sets["parts"], sets["groups"], document["made_by"])


def read_splits_file(directory: Path) -> dict[str, Any]:
    """The checked content of a split's ``splits.json``."""
    path = directory / SPLITS_FILE
    try:
        document = read_document(path, FORMAT, {"parts", "groups"}, _AGAIN)
    except (FileNotFoundError, NotADirectoryError):
        raise CacheNotFoundError(
            f"no split at {directory} ({SPLITS_FILE} is missing)",
            path=directory,
            fix=f"torchcell-cache split root=... out={directory}",
        ) from None
    if not all(_are_entries(document[kind]) for kind in ("parts", "groups")):
        raise CorruptManifestError(f"{path} lacks what it should hold", path=path, fix=_AGAIN)
    return document


def _are_entries(entries: Any) -> bool:
    return isinstance(entries, dict) and all(
        name.replace("_", "").isalnum() and isinstance(entry, dict) and set(entry) == {"count", "xxh3"}
        for name, entry in entries.items()
    )


def _order(name: str) -> tuple[int, str]:
    first = name.partition("_")[0]
    return (PARTS.index(first) if first in PARTS else len(PARTS), name)

"""What ``verify`` found: problems, counts of what was looked at; and what it finds by running the processor again."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch_geometric.data import Batch

from torchcell_cache.builder.generations import stored_processor
from torchcell_cache.builder.publishing import compared, on_stored_graph
from torchcell_cache.core.files import file_digest
from torchcell_cache.core.fingerprint import diff
from torchcell_cache.core.markup import Shown
from torchcell_cache.errors import CacheError, SettingError
from torchcell_cache.graph.compare import first_difference
from torchcell_cache.processors.base import Processing, is_interrupt, said
from torchcell_cache.sources.base import Source
from torchcell_cache.sources.torchcell_processors import paired
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.manifest import MANIFEST_NAME
from torchcell_cache.store.shard_entry import FileEntry

_SHOWN = 20
_PER_PLACE = 50


class Problem(NamedTuple):
    """One finding.

    Attributes:
        file: The file concerned, relative to the store's ``processed`` directory.
        shard: Number of the shard, or ``None``.
        sample: Index of the sample, or ``None``.
        text: What is wrong with it.
    """

    file: str
    shard: int | None
    sample: int | None
    text: str

    def __str__(self) -> str:
        where = self.file if self.sample is None else f"{self.file}, sample {self.sample}"
        return f"{where}: {self.text}"


@dataclass(slots=True)
class Report(Shown):
    """Result of ``verify``.

    Attributes:
        root: Root of the store.
        level: ``quick`` or ``full``.
        generation: The generation looked at.
        problems: What is wrong, in the order found; of one file at most 50, then a line that counts the others.
        checked: How many files, bytes, shards, records and source samples were looked at.
        seconds: How long it took.
        notes: What was passed over.
    """

    root: str
    level: str
    generation: str
    problems: list[Problem] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    _more: dict[str, int] = field(default_factory=dict, repr=False)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def add(self, file: str, text: object, shard: int | None = None, sample: int | None = None) -> None:
        """Note a problem."""
        count = self._more[file] = self._more.get(file, 0) + 1
        if count <= _PER_PLACE:
            self.problems.append(Problem(file, shard, sample, str(text)))

    def count(self, what: str, number: int = 1) -> None:
        """Note that something was looked at."""
        self.checked[what] = self.checked.get(what, 0) + number

    def finish(self, seconds: float) -> Report:
        """Add the lines that count what was left out."""
        self.seconds = round(seconds, 3)
        more = ((file, count - _PER_PLACE) for file, count in self._more.items() if count > _PER_PLACE)
        self.problems += [Problem(file, None, None, f"{count:,} more problems") for file, count in more]
        return self

    def to_json(self) -> str:
        """The report as JSON."""
        names = ("root", "generation", "level", "ok", "problems", "checked", "seconds", "notes")
        facts: dict[str, Any] = {name: getattr(self, name) for name in names}
        facts["problems"] = [problem._asdict() for problem in self.problems]
        return json.dumps(facts, indent=1)

    def __str__(self) -> str:
        looked = ", ".join(f"{number:,} {what}" for what, number in self.checked.items())
        head = f"verify {self.root}, level {self.level}, {self.generation}: {looked} in {self.seconds:.1f} s"
        head = "\n".join([head, *self.notes])
        if self.ok:
            return f"{head}\nno problem found"
        count, lines = len(self.problems), [f"  {problem}" for problem in self.problems[:_SHOWN]]
        lines += [f"  ... and {count - _SHOWN:,} more"] * (count > _SHOWN)
        return "\n".join([head, f"{count:,} problem{'' if count == 1 else 's'}:", *lines])


def file_problem(path: Path, entry: FileEntry, on_read: Callable[[int], None] | None) -> str | None:
    """What is wrong with a file by its size and, where ``on_read`` takes the bytes read, by its digests; ``None`` for nothing."""
    info = path.lstat()
    if not stat.S_ISREG(info.st_mode):
        return "is not a regular file"
    if info.st_size != entry.size:
        return f"has {info.st_size:,} bytes, the manifest says {entry.size:,}"
    if on_read is None:
        return None
    found = file_digest(path)
    on_read(found.size)
    if found != (entry.size, entry.sha256, entry.xxh3):
        return f"has SHA-256 {found.sha256}, the manifest says {entry.sha256}"
    return None


# A store against its source: the processor runs again on samples drawn at random, every field is compared

BATCH = 4
"""Samples of the collated batch: a PyG batch copies the base graph for each, so no more than prove the point."""


def compare_with_source(
    generation: Generation,
    source: Source,
    processor: Any,
    num_samples: int,
    seed: int,
    report: Report,
    on_progress: Callable[[int], None],
) -> None:
    """Compare fingerprint, samples drawn without repeats and one batch; findings go into the report.

    Raises:
        SettingError: If the store's processor is somebody's own and was not given.
    """
    source, processor, _ = paired(source, processor)
    for difference in diff(*compared(generation, source, processor)):
        report.add(MANIFEST_NAME, f"built from something else: {difference}")
    if processor is None:
        processor = stored_processor(generation.manifest)
    source, notes = on_stored_graph(source, generation)
    report.notes += notes
    processing = Processing(processor, source.base_graph)
    count = min(len(source), len(generation))
    random = np.random.default_rng(seed)
    chosen = random.choice(count, min(num_samples, count), replace=False).tolist()
    same: dict[int, Any] = {}
    for index in chosen:
        text: str | None = None
        try:
            expected = processing(source[index])
        except BaseException as error:
            if is_interrupt(error):
                raise
            text = f"the processor fails on it now: {type(error).__name__}: {said(error)}"
        try:
            if text is None and (differs := first_difference(generation.graphs([index])[0], expected)):
                text = f"not what source and processor give now: {differs}"
        except CacheError as error:
            text = f"cannot be read: {error}"
        if text is None and len(same) < BATCH:
            same[index] = expected
        elif text is not None:
            shard = int(generation.files.shard_of(index))
            file = f"{generation.manifest.generation}/{generation.manifest.shards[shard].file.name}"
            report.add(file, text, shard, index)
        report.count("samples against the source")
        on_progress(1)
    text = _batch_difference(generation, same)
    if text is not None:
        report.add(MANIFEST_NAME, f"a batch of samples {list(same)}: {text}")
    try:
        processing.check_base_graph()
    except SettingError as error:
        report.add(MANIFEST_NAME, str(error))


def _batch_difference(generation: Generation, expected: dict[int, Any]) -> str | None:
    try:
        wanted = Batch.from_data_list(list(expected.values()))
    except Exception:
        return (
            None  # PyG cannot make a batch of such samples, or of none; that is between PyG and the processor
        )
    try:
        return first_difference(Batch.from_data_list(generation.graphs(list(expected))), wanted)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

"""A store against its source: the processor runs again on samples drawn at random, every field is compared."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch_geometric.data import Batch

from torchcell_cache.builder.check.report import Report
from torchcell_cache.builder.generations import stored_processor
from torchcell_cache.builder.publishing import compared, on_stored_graph
from torchcell_cache.core.fingerprint import diff
from torchcell_cache.errors import CacheError, SettingError
from torchcell_cache.graph.compare import first_difference
from torchcell_cache.processors.base import Processing, is_interrupt, said
from torchcell_cache.sources.base import Source
from torchcell_cache.sources.torchcell_processors import paired
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.manifest import MANIFEST_NAME

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
    load = partial(getattr, generation, "base_graph")
    for difference in diff(*compared(generation.manifest.fingerprint, load, source, processor)):
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
        expected, text = _compared(generation, source, processing, index)
        if text is None:
            if len(same) < BATCH:
                same[index] = expected
        else:
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


def _compared(
    generation: Generation, source: Source, processing: Processing, index: int
) -> tuple[Any, str | None]:
    """What a sample should be, and how the stored one differs from it."""
    try:
        expected = processing(source[index])
    except BaseException as error:
        if is_interrupt(error):
            raise
        return None, f"the processor fails on it now: {type(error).__name__}: {said(error)}"
    try:
        text = first_difference(generation.graphs([index])[0], expected)
    except CacheError as error:
        return None, f"cannot be read: {error}"
    return expected, None if text is None else f"not what source and processor give now: {text}"


def _batch_difference(generation: Generation, expected: dict[int, Any]) -> str | None:
    if not expected:
        return None
    try:
        wanted = Batch.from_data_list(list(expected.values()))
    except Exception:
        return None  # PyG cannot make a batch of such samples; that is between PyG and the processor
    try:
        return first_difference(Batch.from_data_list(generation.graphs(list(expected))), wanted)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

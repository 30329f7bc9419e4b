"""What users need to test their own processors, sources and models: exact comparison, tiny graphs, checks.

Example:
    >>> import torchcell_cache as tc
    >>> source = tc.testing.tiny_source(10)
    >>> tc.testing.check_source(source), tc.testing.check_processor(tc.Perturbation(), source)
    ([], [])
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch_geometric.data import HeteroData

from torchcell_cache.builder.codehash import declared_settings, refuse_class
from torchcell_cache.core.checks import whole_number
from torchcell_cache.core.fingerprint import canonical_json
from torchcell_cache.core.samples import Sample
from torchcell_cache.errors import CacheError, SettingError, UnsupportedValueError
from torchcell_cache.graph.compare import first_difference, stores_of, value_difference
from torchcell_cache.graph.fields import graph_digest, item_digest
from torchcell_cache.processors.base import Processing, apply_processor, asked, is_interrupt, said
from torchcell_cache.sources.pyg import as_source
from torchcell_cache.sources.torchcell_processors import paired
from torchcell_cache.testing import elsewhere

_PARTS = ("perturbed", "unknown", "values", "phenotypes", "statistics")
_SPECIAL_NAMES = ("batch", "ptr")
_INPUT = (
    "the processor changes its input: a build hands it a copy of its own, so that is fine there; elsewhere the caller's "
    "object changes"
)


def assert_same_graph(actual: Any, expected: Any) -> None:
    """Fail unless two graphs are the same to the bit.

    Order of stores and keys, types, dtypes, shapes and values are compared; NaN equals NaN of the same bits; tensors may
    be on different devices.

    Args:
        actual: A ``Data``, ``HeteroData`` or PyG batch of them.
        expected: What it should be.

    Raises:
        AssertionError: Naming the store, the key and the first difference.

    Example:
        >>> tc.testing.assert_same_graph(ds[0], ds[:1][0])
    """
    text = first_difference(actual, expected)
    if text is not None:
        raise AssertionError(f"graphs differ: {text}")


def check_processor(processor: Any, source: Any, n: int = 8) -> list[str]:
    """Look for what would make a processor unfit for a cache; run it on your own before a long build.

    Checked: it is an object whose settings are JSON; same result twice, and in another process with another hash seed;
    input and base graph stay as they are; the same stores, keys, dtypes and value types for all samples; every value can be
    stored; names that PyG would treat specially when it makes batches. Code of a notebook or of ``__main__`` is sent to the
    other process as it is.

    Args:
        processor: A ``GraphProcessor``, a callable, or ``None``.
        source: Anything ``build`` takes as source.
        n: Number of samples, evenly spaced.

    Returns:
        One sentence per finding, also for what could not be checked; empty if all was checked and all is well.

    Example:
        >>> tc.testing.check_processor(tc.Perturbation(), tc.testing.tiny_source(4))
        []
    """
    n = whole_number("n", n)
    try:
        with asked("the source, asked what it is,"):
            source, processor, _ = paired(as_source(source), processor)
            chosen = _spread(len(source), n)
            processing = Processing(processor, source.base_graph)
        with asked("the processor, asked what it is,"):
            refuse_class(processor)
            declared_settings(processor, "processor")
    except CacheError as error:
        return [str(error)]
    if not chosen:
        return [f"could not be checked: n={n} samples of a source of {len(source)}"]
    problems: list[str] = []
    items: dict[int, Any] = {}
    graphs = []
    for index in chosen:
        try:
            items[index] = source[index]
            graphs.append(_run(processing, items[index], index, problems))
        except BaseException as error:
            if is_interrupt(error):
                raise
            kind = "" if isinstance(error, CacheError) else f"{type(error).__name__}: "
            return [*problems, f"sample {index}: {kind}{said(error)}"]
    try:
        processing.check_base_graph()
    except SettingError as error:
        problems.append(str(error))
    for index, graph in zip(chosen[1:], graphs[1:], strict=True):
        got, want = _fields(graph), _fields(graphs[0])
        if got != want:
            missing, extra = [f for f in want if f not in got], [f for f in got if f not in want]
            text = f"missing {missing}, not expected {extra}" if missing or extra else "their order differs"
            problems.append(f"sample {index} and sample {chosen[0]} have different fields: {text}")
    problems += list(dict.fromkeys(name for graph in graphs[:1] for name in _risky_names(graph)))
    return problems + _elsewhere(processor, source.base_graph, items, graphs)


def _run(processing: Processing, item: Any, index: int, problems: list[str]) -> Any:
    """The graph of an item, made twice; notes what differs and whether the input stayed as it was."""
    own = processing.own(item)
    try:
        before = item_digest(own)
        graph = apply_processor(processing.processor, processing.base_graph, own)
        if item_digest(own) != before and _INPUT not in problems:
            problems.append(_INPUT)
    except UnsupportedValueError as error:
        problems.append(f"could not be checked whether the processor changes its input: {error}")
        graph = processing(item)
    processing.check_base_graph()  # now: the next run may take back what this one wrote
    graph_digest(graph)
    graph = processing.own(graph)  # the processor may write the next one to the same memory
    text = first_difference(processing(item), graph)
    if text is not None:
        problems.append(f"sample {index}: a second run gives another result: {text}")
    return graph


def check_source(source: Any, n: int = 8) -> list[str]:
    """Look for what would make a source unfit for a cache.

    Checked: samples do not change between two reads, reading does not change the base graph, an index beyond the end
    raises ``IndexError``, the identity is plain JSON and does not change; perturbed ids are ascending, unique and within
    the base graph; the table, where there is one, holds what the samples say.

    Args:
        source: Anything ``build`` takes as source.
        n: Number of samples, evenly spaced.

    Returns:
        One sentence per finding; empty if all is well.

    Example:
        >>> tc.testing.check_source(tc.testing.tiny_source(4))
        []
    """
    problems: list[str] = []
    identity = None
    n = whole_number("n", n)
    try:
        with asked("the source, asked what it is,"):
            source = as_source(source)
            chosen = _spread(len(source), n)
    except CacheError as error:
        return [str(error)]
    try:
        with asked("the source, asked for its identity,"):
            identity = canonical_json(source.identity())
    except CacheError as error:
        problems.append(str(error))
    before = _base_digest(source)
    for index in chosen:
        try:
            with asked("reading it"):
                problems += [f"sample {index}: {text}" for text in _check_item(source, index)]
        except CacheError as error:
            problems.append(f"sample {index}: {error}")
    try:
        _ = source[len(source)]
        problems.append(f"source[{len(source)}] is beyond the end and raises nothing, expected IndexError")
    except IndexError:
        pass
    except Exception as error:
        problems.append(f"source[{len(source)}] raises {type(error).__name__}, expected IndexError")
    if _base_digest(source) != before:
        problems.append("reading samples changes the base graph")
    if identity is not None and canonical_json(source.identity()) != identity:
        problems.append("identity() changes from call to call, so a store would be stale at once")
    return problems


def _spread(count: int, n: int) -> list[int]:
    n = min(n, count)
    return sorted({k * (count - 1) // max(n - 1, 1) for k in range(n)})


def _base_digest(source: Any) -> str:
    return "" if source.base_graph is None else graph_digest(source.base_graph)


def _check_item(source: Any, index: int) -> Iterator[str]:
    item, again = source[index], source[index]
    if isinstance(item, Sample):
        for name, text in _unlike(again, item, (*_PARTS, "source_id")):
            yield f"a second read gives another {name}: {text}"
        yield from _check_sample(item, source, index)
        return
    try:
        graph_digest(item)
    except CacheError as error:
        yield str(error)
        return
    difference = first_difference(again, item)
    if difference is not None:
        yield f"a second read gives another graph: {difference}"


def _check_sample(item: Sample, source: Any, index: int) -> Iterator[str]:
    if item.perturbed.dtype != np.int64 or bool((np.diff(item.perturbed) <= 0).any()):
        yield f"perturbed is {item.perturbed} {item.perturbed.dtype}, expected ascending unique int64"
    width = len(item.phenotypes) + len(item.statistics)
    if item.values.dtype != np.float32 or item.values.ndim != 2 or item.values.shape[1] != width:
        yield f"values is {item.values.dtype}{list(item.values.shape)}, expected float32[measurements, {width}]"
    if item.base_graph is not source.base_graph:
        yield "its base_graph is not the source's own object"
    table = getattr(source, "table", None)
    if table is not None:
        for name, text in _unlike(item, table.sample(index), _PARTS):
            yield f"{name} differs from the table's row: {text}"


def _unlike(one: Sample, other: Sample, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    texts = ((name, value_difference(getattr(one, name), getattr(other, name))) for name in names)
    return ((name, text) for name, text in texts if text is not None)


def _fields(graph: Any) -> list[str]:
    """Every field with its kind, in order: what should be alike for all samples."""
    out = []
    for store, fields in stores_of(graph):
        for name, value in fields.items():
            kind = f"{value.dtype}" if isinstance(value, torch.Tensor | np.ndarray) else type(value).__name__
            out.append(f"{store}.{name} ({kind})" if store is not None else f"{name} ({kind})")
    return out


def _risky_names(graph: Any) -> Iterator[str]:
    """Attributes that PyG increments, or overwrites, when it makes a batch."""
    plain = not isinstance(graph, HeteroData)
    for store, fields in stores_of(graph):
        incremented = plain or isinstance(store, tuple)
        for name, value in fields.items():
            where = name if store is None else f"{store}.{name}"
            if name in _SPECIAL_NAMES:
                yield f"{where}: PyG's batches use the name '{name}' for themselves; rename it"
            elif not isinstance(value, torch.Tensor) or name in ("edge_index", "hyperedge_index"):
                continue
            elif "batch" in name or (incremented and "index" in name) or (plain and name == "face"):
                yield f"{where}: PyG shifts '{name}' by counts in a batch because of its name; rename it"


def _elsewhere(processor: Any, base_graph: Any, items: dict[int, Any], graphs: list[Any]) -> list[str]:
    """Compare with a fresh process whose sets and dicts of strings are ordered otherwise."""
    try:
        digests = elsewhere.call(_digests, processor, base_graph, list(items.values()))
    except elsewhere.NotRunError as error:
        return [
            "could not be checked in another process, so nothing is known of results that depend on the process or the "
            f"hash seed: {error}"
        ]
    return [
        f"sample {index}: depends on the hash seed or the process: another process with another PYTHONHASHSEED gives "
        "another result (an unsorted set?)"
        for index, graph, digest in zip(items, graphs, digests, strict=True)
        if graph_digest(graph) != digest
    ]


def _digests(processor: Any, base_graph: Any, items: list[Any]) -> list[str]:
    torch.set_num_threads(1)
    return [graph_digest(graph) for graph in map(Processing(processor, base_graph), items)]

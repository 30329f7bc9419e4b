"""What a :class:`~torchcell_cache.cli.bench.store.BenchReport` means: tables, plain advice, and whether the build pays."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torchcell_cache.cli.bench.store import BenchReport
from torchcell_cache.core.progress import human_bytes, human_seconds

LITTLE_WAIT = 0.01
"""Share of waiting that nobody needs to care about."""

_NO_GAIN = 0.8
_WHAT = {
    "read": "records from LMDB, checksums verified",
    "batch, cold": "the same after the kernel forgot the shards",
    "decode": "records to arrays",
    "batch": "a shared batch, from the store to one buffer",
    "copy": "the buffer to the device",
    "masks": "node mask and all edge masks",
    "expand": "to_pyg(): the PyG batch",
    "samples": "dataset[i] one by one, for stock loading",
    "pyg collate": "Batch.from_data_list of those, for comparison",
    "on the fly": "the processor on each sample, no cache, for comparison",
}

_COMPARED = {
    "batch": "reading a batch",
    "samples": "reading samples",
    "on the fly": "processing on the fly",
    "pyg collate": "PyG's collate",
}
"""What the comparison with processing on the fly needs."""


def human_ms(ms: float) -> str:
    """Milliseconds with three digits or so, in seconds from 1,000 on."""
    if ms >= 1000:
        return f"{ms / 1000:.2f} s"
    digits = 0 if ms >= 100 else 1 if ms >= 10 else 2 if ms >= 1 else 3
    return f"{ms:.{digits}f} ms"


def human_share(share: float) -> str:
    """A share as percent."""
    return f"{100 * share:.2g} %" if share < 0.995 else "99 % or more"


def as_text(report: BenchReport) -> str:
    """The report as tables, followed by the advice."""
    facts, size, step = report.facts, report.facts["batch_size"], report.facts["step_ms"]
    fewer = "" if facts["asked"] == size else f" ({facts['asked']} asked for: the store has no more)"
    lines = [
        f"{facts['root']}: {facts['samples']:,} samples as '{facts['storage']}', records {human_bytes(facts['record_bytes'])} "
        f"in {facts['shards']:,} shards",
        f"batches of {size}{fewer} at random, seed {facts['seed']}, one thread; {facts['cores']} cores, device "
        f"{facts['device']}, torch {facts['torch']}",
        "",
    ]
    rows = []
    for name, times in report.stages.items():
        counts = f"{times['samples']}", f"{times['repeats']}"
        rows.append([name, *counts, *_cells(times), human_ms(times["per_sample_us"] / 1e3), _WHAT[name]])
    lines += _table(["stage", "batch", "times", "p50", "p90", "p99", "a sample", "what"], rows)
    lines += [f"{name:<13}not measured: {why}" for name, why in report.skipped.items()]
    if any(times["samples"] < size for times in report.stages.values()):
        lines.append(f"(smaller batches where {size} samples would take too much time or memory)")
    if report.steps:
        heads = ["step", "samples", *report.steps[0]["parts_ms"], "a sample"]
        costs = [[*each["parts_ms"].values(), each["sample_ms"]] for each in report.steps]
        rows = [[each["way"], f"{each['samples']}"] for each in report.steps]
        lines += [
            "",
            *_table(heads, [row + list(map(human_ms, ms)) for row, ms in zip(rows, costs, strict=True)]),
        ]
        layers = f"{facts['layers']} GIN layers of width {facts['hidden']}"
        lines.append(f"({layers} over all edge types between perturbed nodes, no optimizer)")
    rows = []
    for row in report.workers:
        beside = [] if step is None else _cells(row["step_wait"], "p50", "p99")
        beside += [] if step is None else [human_share(row["data_wait_share"])]
        cells = human_ms(row["first_ms"]), *_cells(row["wait"]), f"{1e3 / _mean_ms(row):,.0f}"
        rows.append([f"{row['num_workers']}", *cells, ", ".join(beside)])
    waits = "" if step is None else f"wait beside a step of {step:g} ms: p50, p99, share"
    lines += ["", *_table(["workers", "first", "p50", "p90", "p99", "batches/s", waits], rows)]
    return "\n".join([*lines, "", "advice", *(f"  - {line}" for line in advice(report))])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows below each other: the first and the last column from the left, numbers from the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for name, *cells, last in (head, *rows):
        numbers = (f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=False))
        yield f"{name:<{widths[0]}}{''.join(numbers)}  {last}".rstrip()


def _cells(times: Mapping[str, Any], *names: str) -> list[str]:
    return [human_ms(times[f"{name}_ms"]) for name in names or ("p50", "p90", "p99")]


def _mean_ms(row: Mapping[str, Any]) -> float:
    return max(float(row["wait"]["mean_ms"]), 1e-6)


def advice(report: BenchReport) -> list[str]:
    """What to set and what to expect, a sentence or two each, the most important first."""
    parts = (_workers, _against_processing, _paid, _shared_mode, _expanding, _cold)
    return [line for part in parts for line in part(report)]


def _workers(report: BenchReport) -> Iterator[str]:
    step, rows = report.facts["step_ms"], {row["num_workers"]: row for row in report.workers}
    if step is None:  # fewer workers unless more are clearly faster
        count = min(rows, key=lambda count: (1.25 ** (count > 0) * _mean_ms(rows[count]), count))
        mean = _mean_ms(rows[count])
        enough = human_ms(mean * (1 - LITTLE_WAIT) / LITTLE_WAIT)
        yield (
            f"{count} worker{'s' * (count != 1)}; a batch every {human_ms(mean)}, so data wait stays below "
            f"{human_share(LITTLE_WAIT)} of any training step above {enough} (step_ms= measures it beside yours)"
        )
        return
    # The fewest with little wait, else those with the least.
    shares = {count: row["data_wait_share"] for count, row in rows.items()}
    count = min(shares, key=lambda count: (max(shares[count], LITTLE_WAIT), count))
    text = (
        f"{count} worker{'s' * (count != 1)}; data wait {human_share(shares[count])} of your {step:g} ms step"
    )
    if shares[count] >= LITTLE_WAIT:
        text += f"; reading a batch takes {human_ms(report.stages['batch']['p50_ms'])}"
    yield text


def _against_processing(report: BenchReport) -> Iterator[str]:
    """Whether the cache is worth having: the same PyG batch from the store and from the processor."""
    on_the_way = ("batch", "copy") if "copy" in report.stages else ("batch",)
    shared, expanded = report.cost(*on_the_way), report.cost(*on_the_way, "expand")
    stock, fly = report.cost("samples", "pyg collate"), report.cost("on the fly", "pyg collate")
    single, process = report.cost("samples"), report.cost("on the fly")
    each = [
        None if cost is None else human_ms(cost / report.facts["batch_size"]) for cost in (single, process)
    ]
    if fly is None or process is None or single is None or shared is None:
        missing = [name for name in _COMPARED if name not in report.stages]
        why = [f"{_COMPARED[n]} was not measured ({report.skipped.get(n, 'no time')})" for n in missing]
        yield f"whether the cache helps cannot be said for PyG batches: {'; '.join(why)}"
        if None not in each:
            yield f"a sample alone costs {each[0]} from the store, {each[1]} processed on the fly"
        return
    here = min((cost for cost in (expanded, stock) if cost is not None), default=shared)
    versus = f"{human_ms(here)} from the store, {human_ms(fly)} processed on the fly and collated by PyG"
    if here >= _NO_GAIN * fly:
        yield f"the cache does not help models that take PyG batches here: a batch costs {versus}"
        if shared < _NO_GAIN * fly:
            yield f"it does help models on the shared graph: their batch costs {human_ms(shared)}"
    else:
        times = f"{fly / here:.1f}" if fly < 10 * here else f"{fly / here:,.0f}"
        yield f"the cache helps: a PyG batch costs {versus} ({times} times as long); a shared one {human_ms(shared)}"
    if single >= _NO_GAIN * process:
        yield (
            f"one by one, dataset[i] gains nothing: reading a sample costs {each[0]}, "
            f"processing it {each[1]}; use CacheLoader"
        )
    step = report.facts["step_ms"]
    if step is not None and fly < LITTLE_WAIT * step:
        yield f"without a cache you would wait {human_share(fly / (fly + step))} of your step: the cache is not needed"
    elif step is not None and fly < step * (report.facts["cores"] or 1):
        needed = math.ceil(fly / step)
        yield (
            f"without a cache {needed} worker{'' if needed == 1 else 's'} could keep up with your step as well, each "
            "busy all the time and sending whole PyG batches: here the cache saves processors and memory more than time"
        )


def investment(report: BenchReport) -> dict[str, Any] | None:
    """What ``epochs`` cost without the cache and with it: hours of one core for data, bytes, and when the build has paid.

    ``None`` without ``epochs``; figures that could not be measured are ``None``.
    """
    facts = report.facts
    if facts.get("epochs") is None:
        return None
    per_epoch = facts["samples"] / report.facts["batch_size"] / 3.6e6  # ms a batch to hours an epoch
    ways = (("on the fly", "pyg collate"), ("batch",), ("batch", "expand"))
    without, shared, expanded = (
        None if (cost := report.cost(*way)) is None else cost * per_epoch for way in ways
    )
    once = None if facts["build_seconds"] is None else float(facts["build_seconds"]) / 3600
    gained = 0.0 if without is None or shared is None else without - shared
    hours = [None if each is None else each * facts["epochs"] for each in (without, shared, expanded)]
    return {
        "epochs": facts["epochs"],
        "hours_without": hours[0],
        "hours_build": once,
        "hours_with": hours[1],
        "hours_with_pyg_batches": hours[2],
        "bytes": facts["store_bytes"],
        "paid_after_epochs": None if once is None or gained <= 0 else max(1, math.ceil(once / gained)),
    }


def _paid(report: BenchReport) -> Iterator[str]:
    """Whether the build pays, in one sentence."""
    found = investment(report)
    if found is None:
        return
    hours = [found[key] for key in ("hours_without", "hours_with", "hours_build")]
    if None in hours:
        yield f"what {found['epochs']:,} epochs cost without the cache cannot be said: processing or building was not measured"
        return
    without, shared, build = (human_seconds(3600 * count) for count in hours)
    stay = f"{shared} with it, after {build} to build {human_bytes(found['bytes'])}"
    count = found["paid_after_epochs"]
    after = f"it has paid after {count:,} epoch{'' if count == 1 else 's'}" if count else "it never pays"
    yield f"{found['epochs']:,} epochs: {without} of one core for data without the cache, {stay}; {after}"


def _shared_mode(report: BenchReport) -> Iterator[str]:
    """What a model on the shared graph gains."""
    if len(report.steps) != 2:
        return
    width, (shared, pyg) = report.facts["hidden"], [step["sample_ms"] for step in report.steps]
    versus = f"{human_ms(shared)} a sample, {human_ms(pyg)} on PyG batches"
    if shared >= _NO_GAIN * pyg:
        yield f"the shared mode does not help layers of width {width} here: a step costs {versus}"
    else:
        yield f"the shared mode makes a step of width {width} {pyg / shared:.1f} times as fast: {versus} (torchcell_cache.nn)"


def _expanding(report: BenchReport) -> Iterator[str]:
    step, expand, masks = report.facts["step_ms"], report.cost("expand"), report.cost("masks")
    if expand is None or (step is not None and expand < LITTLE_WAIT * step):
        return
    text = f"expand=True adds {human_ms(expand)} to a batch"
    if step is not None:
        text += f", {human_share(expand / (expand + step))} of the time with your step"
    if masks is not None and masks < expand / 2:
        text += f"; a model on the shared graph needs only the masks, {human_ms(masks)}"
    yield text


def _cold(report: BenchReport) -> Iterator[str]:
    cold, warm, step = report.cost("batch, cold"), report.cost("batch"), report.facts["step_ms"]
    if cold is None or warm is None:
        return
    text = f"reading costs {human_ms(cold)} cold and {human_ms(warm)} warm"
    if report.stayed_in_memory is not None and report.stayed_in_memory > 0.1:
        text += f"; cold is too good, {human_share(report.stayed_in_memory)} of the shards stayed in memory"
    elif step is not None and cold > LITTLE_WAIT * step:
        text += f": {human_share(cold / (cold + step))} of the time with your step; cat the shards once, or use workers"
    yield f"{text}; once all {human_bytes(report.facts['record_bytes'])} of records are in memory, reading is warm"

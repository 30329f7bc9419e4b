"""What a :class:`~torchcell_cache.cli.bench.store.BenchReport` means: tables and plain advice."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torchcell_cache.cli.bench.investment import investment, paid
from torchcell_cache.cli.bench.store import BenchReport, WorkerTiming
from torchcell_cache.core.progress import human_bytes

LITTLE_WAIT = 0.01
"""Share of waiting that nobody needs to care about."""

_NO_GAIN = 0.8
_ON_THE_WAY = ("batch",)
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


def as_dict(report: BenchReport) -> dict[str, Any]:
    """The report as JSON values."""
    step = report.step_ms
    return {
        **report.facts,
        "stages": {name: timing.to_dict() for name, timing in report.stages.items()},
        "skipped": report.skipped,
        "steps": [step.to_dict() for step in report.steps],
        "stayed_in_memory": report.stayed,
        "workers": [
            {
                "num_workers": row.num_workers,
                "first_ms": row.first_ms,
                "wait": row.wait.to_dict(),
                "step_wait": None if row.step_wait is None else row.step_wait.to_dict(),
                "data_wait_share": None if step is None else row.share(step),
            }
            for row in report.sweep
        ],
        "investment": investment(report),
        "advice": advice(report),
    }


def as_text(report: BenchReport) -> str:
    """The report as tables, followed by the advice."""
    return "\n".join(
        [
            *_head(report),
            "",
            *_stage_table(report),
            "",
            *_step_table(report),
            *_worker_table(report),
            "",
            *_advised(report),
        ]
    )


def _head(report: BenchReport) -> Iterator[str]:
    facts = report.facts
    yield (
        f"{facts['root']}: {facts['samples']:,} samples as '{facts['storage']}', records {human_bytes(facts['record_bytes'])} "
        f"in {facts['shards']:,} shards"
    )
    fewer = (
        "" if facts["asked"] == report.batch_size else f" ({facts['asked']} asked for: the store has no more)"
    )
    yield (
        f"batches of {report.batch_size}{fewer} at random, seed {facts['seed']}, one thread; {facts['cores']} cores, device "
        f"{facts['device']}, torch {facts['torch']}"
    )


def _stage_table(report: BenchReport) -> Iterator[str]:
    yield f"{'stage':<13}{'batch':>6}{'times':>7}{'p50':>11}{'p90':>11}{'p99':>11}{'a sample':>12}  what"
    for name, timing in report.stages.items():
        cells = "".join(f"{human_ms(timing.percentile(q)):>11}" for q in (50, 90, 99))
        each = human_ms(timing.percentile(50) / timing.samples)
        yield f"{name:<13}{timing.samples:>6}{len(timing.seconds):>7}{cells}{each:>12}  {_WHAT[name]}"
    for name, why in report.skipped.items():
        yield f"{name:<13}not measured: {why}"
    if any(timing.samples < report.batch_size for timing in report.stages.values()):
        yield f"(smaller batches where {report.batch_size} samples would take too much time or memory)"


def _step_table(report: BenchReport) -> Iterator[str]:
    if not report.steps:
        return
    facts, parts = report.facts, list(report.steps[0].parts)
    yield f"{'step':<9}{'samples':>8}" + "".join(f"{name:>11}" for name in (*parts, "a sample"))
    for step in report.steps:
        cells = [step.parts[name] for name in parts]
        yield f"{step.way:<9}{step.samples:>8}" + "".join(
            f"{human_ms(ms):>11}" for ms in (*cells, step.sample_ms)
        )
    yield f"({facts['layers']} GIN layers of width {facts['hidden']} over all edge types between perturbed nodes, no optimizer)"
    yield ""


def _worker_table(report: BenchReport) -> Iterator[str]:
    step = report.step_ms
    wait = "" if step is None else f"   wait beside a step of {step:g} ms: p50, p99, share"
    yield f"{'workers':<9}{'first':>10}{'p50':>11}{'p90':>11}{'p99':>11}{'batches/s':>12}{wait}"
    for row in report.sweep:
        cells = "".join(f"{human_ms(row.wait.percentile(q)):>11}" for q in (50, 90, 99))
        line = f"{row.num_workers:<9}{human_ms(row.first_ms):>10}{cells}{_rate(row):>12,.0f}"
        share = None if step is None else row.share(step)
        if row.step_wait is not None and share is not None:
            times = ", ".join(human_ms(row.step_wait.percentile(q)) for q in (50, 99))
            line += f"   {times}, {human_share(share)}"
        yield line


def _rate(row: WorkerTiming) -> float:
    return len(row.wait.seconds) / max(sum(row.wait.seconds), 1e-9)


def _advised(report: BenchReport) -> Iterator[str]:
    yield "advice"
    for line in advice(report):
        yield f"  - {line}"


def advice(report: BenchReport) -> list[str]:
    """What to set and what to expect, a sentence or two each, the most important first."""
    return [
        *_workers(report),
        *_against_processing(report),
        *paid(report),
        *_shared_mode(report),
        *_expanding(report),
        *_cold(report),
    ]


def _workers(report: BenchReport) -> Iterator[str]:
    step = report.step_ms
    if step is None:
        # Fewer workers unless more are clearly faster.
        best = min(
            report.sweep, key=lambda row: (1.25 ** (row.num_workers > 0) / _rate(row), row.num_workers)
        )
        enough = 1e3 / _rate(best) * (1 - LITTLE_WAIT) / LITTLE_WAIT
        yield (
            f"{_count(best)}; a batch every {human_ms(1e3 / _rate(best))}, so data wait stays below "
            f"{human_share(LITTLE_WAIT)} of any training step above {human_ms(enough)} (step_ms= measures it beside yours)"
        )
        return
    shares = {row.num_workers: row.share(step) or 0.0 for row in report.sweep}
    fine = [row for row in report.sweep if shares[row.num_workers] < LITTLE_WAIT]
    best = (
        min(fine, key=lambda row: row.num_workers)
        if fine
        else min(report.sweep, key=lambda row: shares[row.num_workers])
    )
    text = f"{_count(best)}; data wait {human_share(shares[best.num_workers])} of your {step:g} ms step"
    if not fine:
        text += f"; reading a batch takes {human_ms(report.stages['batch'].percentile(50))}"
    yield text


def _count(row: WorkerTiming) -> str:
    return f"{row.num_workers} worker{'' if row.num_workers == 1 else 's'}"


def _against_processing(report: BenchReport) -> Iterator[str]:
    """Whether the cache is worth having: the same PyG batch from the store and from the processor."""
    moved = ("copy",) if "copy" in report.stages else ()
    shared, expanded = report.cost(*_ON_THE_WAY, *moved), report.cost(*_ON_THE_WAY, *moved, "expand")
    stock, fly = report.cost("samples", "pyg collate"), report.cost("on the fly", "pyg collate")
    single, process = report.cost("samples"), report.cost("on the fly")
    if fly is None or process is None or single is None or shared is None:
        yield from _not_compared(report, single, process)
        return
    here = min(cost for cost in (expanded, stock) if cost is not None) if expanded or stock else shared
    versus = f"{human_ms(here)} from the store, {human_ms(fly)} processed on the fly and collated by PyG"
    if here >= _NO_GAIN * fly:
        yield f"the cache does not help models that take PyG batches here: a batch costs {versus}"
        if shared < _NO_GAIN * fly:
            yield f"it does help models on the shared graph: their batch costs {human_ms(shared)}"
    else:
        yield f"the cache helps: a PyG batch costs {versus} ({_times(fly / here)}); a shared one {human_ms(shared)}"
    if single >= _NO_GAIN * process:
        yield (
            f"one by one, dataset[i] gains nothing: reading a sample costs {human_ms(single / report.batch_size)}, "
            f"processing it {human_ms(process / report.batch_size)}; use CacheLoader"
        )
    step = report.step_ms
    if step is not None and fly < LITTLE_WAIT * step:
        yield f"without a cache you would wait {human_share(fly / (fly + step))} of your step: the cache is not needed"
    elif step is not None and fly < step * (report.facts["cores"] or 1):
        needed = math.ceil(fly / step)
        yield (
            f"without a cache {needed} worker{'' if needed == 1 else 's'} could keep up with your step as well, each "
            "busy all the time and sending whole PyG batches: here the cache saves processors and memory more than time"
        )


def _not_compared(report: BenchReport, single: float | None, process: float | None) -> Iterator[str]:
    missing = [name for name in _COMPARED if name not in report.stages]
    why = [f"{_COMPARED[name]} was not measured ({report.skipped.get(name, 'no time')})" for name in missing]
    yield f"whether the cache helps cannot be said for PyG batches: {'; '.join(why)}"
    if single is not None and process is not None:
        yield (
            f"a sample alone costs {human_ms(single / report.batch_size)} from the store, "
            f"{human_ms(process / report.batch_size)} processed on the fly"
        )


def _times(factor: float) -> str:
    return f"{factor:.1f} times as long" if factor < 10 else f"{factor:,.0f} times as long"


def _shared_mode(report: BenchReport) -> Iterator[str]:
    """What a model on the shared graph gains."""
    if len(report.steps) != 2:
        return
    shared, pyg = report.steps
    width, versus = (
        report.facts["hidden"],
        f"{human_ms(shared.sample_ms)} a sample, {human_ms(pyg.sample_ms)} on PyG batches",
    )
    if shared.sample_ms >= _NO_GAIN * pyg.sample_ms:
        yield f"the shared mode does not help layers of width {width} here: a step costs {versus}"
    else:
        factor = pyg.sample_ms / shared.sample_ms
        yield f"the shared mode makes a step of width {width} {factor:.1f} times as fast: {versus} (torchcell_cache.nn)"


def _expanding(report: BenchReport) -> Iterator[str]:
    step, expand, masks = report.step_ms, report.cost("expand"), report.cost("masks")
    if expand is None or (step is not None and expand < LITTLE_WAIT * step):
        return
    text = f"expand=True adds {human_ms(expand)} to a batch"
    if step is not None:
        text += f", {human_share(expand / (expand + step))} of the time with your step"
    if masks is not None and masks < expand / 2:
        text += f"; a model on the shared graph needs only the masks, {human_ms(masks)}"
    yield text


def _cold(report: BenchReport) -> Iterator[str]:
    cold, warm, step = report.cost("batch, cold"), report.cost("batch"), report.step_ms
    if cold is None or warm is None:
        return
    text = f"reading costs {human_ms(cold)} cold and {human_ms(warm)} warm"
    if report.stayed is not None and report.stayed > 0.1:
        text += f"; cold is too good, {human_share(report.stayed)} of the shards stayed in memory"
    elif step is not None and cold > LITTLE_WAIT * step:
        text += f": {human_share(cold / (cold + step))} of the time with your step; cat the shards once, or use workers"
    yield f"{text}; once all {human_bytes(report.facts['record_bytes'])} of records are in memory, reading is warm"

"""Checks of a loader's arguments: what was got, what is valid, what was probably meant."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import BatchSampler

from torchcell_cache.core.checks import choice, whole_number
from torchcell_cache.data.samplers.base import CacheSampler
from torchcell_cache.data.samplers.order import DistributedCacheSampler
from torchcell_cache.errors import SettingError


def checked_device(value: Any) -> torch.device | None:
    """A device by its name or number; ``None`` as it is.

    Raises:
        SettingError: If torch knows no such device.
    """
    try:
        device = None if value is None else torch.device(value)
        if device is not None and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise RuntimeError(f"this process sees {torch.cuda.device_count()} CUDA devices")
        return device
    except (RuntimeError, TypeError) as error:
        raise SettingError(
            f"device={value!r}: {str(error).splitlines()[0]:.200}", fix="device='cuda', or device='cpu'"
        ) from None


def start_method(value: Any) -> Any:
    """A start method's name if it exists here; contexts and ``None`` as they are."""
    if isinstance(value, str):
        choice("multiprocessing_context", value, tuple(multiprocessing.get_all_start_methods()))
    return value


def samplers_of(
    dataset: Any,
    sampler: Any,
    batch_sampler: Any,
    batch_size: int,
    drop_last: bool,
    shuffle: bool,
    own: dict[str, Any],
) -> tuple[Any, Any]:
    """The sampler and the batch sampler that a loader's arguments mean; one object if it is ours.

    Args:
        dataset: What is sampled.
        sampler: As passed to the loader, or ``None``.
        batch_sampler: Likewise.
        batch_size: Samples per batch.
        drop_last: Leave out what does not fill a batch.
        shuffle: Whether to permute.
        own: Arguments that only a :class:`DistributedCacheSampler` takes, as far as they are not the default.

    Raises:
        SettingError: If they contradict each other.
    """
    for name, value in (("sampler", sampler), ("batch_sampler", batch_sampler)):
        if value is not None and not isinstance(value, Iterable):
            raise SettingError(
                f"{name}={value!r:.80}: expected what gives indices, such as a list or a sampler"
            )
    if sampler is None and batch_sampler is None:
        ours = DistributedCacheSampler(dataset, batch_size, shuffle, drop_last=drop_last, **own)
        return ours, ours
    ready = batch_sampler is not None or isinstance(sampler, CacheSampler)
    excluded = {"shuffle": shuffle, **own}
    if ready:
        excluded |= {"batch_size": batch_size != 1, "drop_last": drop_last}
    if batch_sampler is not None:
        excluded["sampler"] = sampler is not None
    wrong = [name for name, given in excluded.items() if given is not False]
    if wrong:
        name = "sampler" if batch_sampler is None else "batch_sampler"
        raise SettingError(
            f"{name} decides the order itself and excludes {', '.join(wrong)}",
            fix="leave out one or the other; a DistributedCacheSampler takes them all",
        )
    if batch_sampler is not None:
        return getattr(batch_sampler, "sampler", batch_sampler), batch_sampler
    return sampler, sampler if ready else BatchSampler(
        sampler, whole_number("batch_size", batch_size, 1), drop_last
    )

"""How well an order is shuffled, in figures that can be compared with those of a full shuffle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchcell_cache.core.ragged import Int64Array


@dataclass(frozen=True, slots=True)
class ShuffleQuality:
    """Figures of one epoch's order; a full shuffle of many samples has the value in brackets.

    Attributes:
        mean_displacement: Mean distance between a sample's place in the epoch and in the dataset, as a share of the
            dataset (1/3).
        median_displacement: The median of it (0.293).
        neighbour_distance: Mean distance in the dataset between samples that follow each other in the epoch, as a
            share of the dataset (1/3).
        adjacency: Share of samples followed by a direct neighbour in the dataset (2/n).
        together: Share of samples that are in one batch with their successor in the dataset (batch size/n).
    """

    mean_displacement: float
    median_displacement: float
    neighbour_distance: float
    adjacency: float
    together: float


def shuffle_quality(order: Int64Array, batch_size: int) -> ShuffleQuality:
    """Figures of an order.

    Args:
        order: A permutation, ``[num_samples] int64``.
        batch_size: Samples per batch.
    """
    count = len(order)
    if count < 2:
        return ShuffleQuality(0.0, 0.0, 0.0, 0.0, 0.0)
    place = np.empty(count, dtype=np.int64)
    place[order] = np.arange(count)
    moved = np.abs(place - np.arange(count)) / count
    steps = np.abs(np.diff(order))
    batch = place // batch_size
    return ShuffleQuality(
        mean_displacement=float(moved.mean()),
        median_displacement=float(np.median(moved)),
        neighbour_distance=float(steps.mean()) / count,
        adjacency=float((steps == 1).mean()),
        together=float((batch[1:] == batch[:-1]).mean()),
    )

"""Whether the removed positions of a batch make sense, before masks are made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.batch.sections import Sections
from torchcell_cache.codec.delta_code import check_gaps_ragged
from torchcell_cache.core.hints import root_argument
from torchcell_cache.errors import CorruptRecordError
from torchcell_cache.graph.incidence import IncidenceIndex
from torchcell_cache.store.generation import Generation


def degrees(index: IncidenceIndex, ids: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Entries of the incidence index under each node, ``[n] int64``."""
    found: npt.NDArray[np.int64] = index.ptr[ids, -1] - index.ptr[ids, 0]
    return found


def check_removals(generation: Generation, sections: Sections) -> None:
    """Refuse positions that make no sense, and "nothing removed" of nodes that have edges.

    A device would read beyond its memory for the first, and the second would train on the wild type.

    Args:
        generation: The store's generation; its records have removed positions.
        sections: The batch as arrays.

    Raises:
        CorruptRecordError: Naming the sample.
    """
    assert generation.topology is not None
    assert generation.removal is not None
    words, word_ptr, ptr = (sections[name] for name in ("words", "word_ptr", "perturbed_ptr"))

    def corrupt(at: int, what: str) -> CorruptRecordError:
        return CorruptRecordError(
            f"{generation.directory}: sample {int(sections['indices'][at])} {what}",
            path=generation.directory,
            fix=f"torchcell-cache repair {root_argument(generation.root)}",
        )

    wrong = check_gaps_ragged(words, word_ptr, generation.topology.size)
    if wrong is not None:
        raise corrupt(wrong, "removes positions that do not ascend within the base graph")
    for at in np.flatnonzero((np.diff(word_ptr) == 0) & (np.diff(ptr) > 0)).tolist():
        ids = sections["perturbed"][ptr[at] : ptr[at + 1]]
        if int(degrees(generation.removal.index, ids).sum()):
            raise corrupt(at, f"perturbs nodes {ids.tolist()} that have edges, and removes none")

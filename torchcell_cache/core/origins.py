"""What a database says of measurements beyond their values: dataset, label, perturbations one by one, labels as float64."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.fingerprint import array_digest, sha256_json
from torchcell_cache.core.ragged import Int64Array, offsets, ragged_rows

Codes = npt.NDArray[np.integer[Any]]

_OF_MEASUREMENTS = ("dataset", "label")
_OF_PERTURBATIONS = ("gene", "kind")
_CODES = (*_OF_MEASUREMENTS, *_OF_PERTURBATIONS, "classes", "gene_set")


@dataclass(frozen=True, slots=True, eq=False)
class Origins:
    """Codes into ``words``; measurement ``m`` has the perturbations ``ptr[m]:ptr[m + 1]``, repeats and names of no node too.

    Attributes:
        words: Distinct texts, ascending.
        dataset: Name of each measurement's dataset, ``[num_measurements]``.
        label: Name of what each measurement measured, ``[num_measurements]``.
        gene: Perturbed name, ``[num_perturbations]``.
        kind: Type of the perturbation, ``[num_perturbations]``.
        ptr: Offsets into ``gene`` and ``kind``, ``[num_measurements + 1] int64``.
        last: The last measured number of each sample for each phenotype, ``[num_samples, num_phenotypes] float64``.
        classes: Name of each phenotype's class, ``[num_phenotypes]``.
        gene_set: All genes that were asked for, ascending.
    """

    words: Sequence[str]
    dataset: Codes
    label: Codes
    gene: Codes
    kind: Codes
    ptr: Int64Array
    last: npt.NDArray[np.float64]
    classes: Codes
    gene_set: Codes

    @classmethod
    def from_words(
        cls, words: Sequence[str], codes: Mapping[str, Any], ptr: Int64Array, last: npt.NDArray[np.float64]
    ) -> Origins:
        """From distinct words in any order and codes into them, by field."""
        order = sorted(range(len(words)), key=words.__getitem__)
        to = np.argsort(np.array(order, dtype=np.int64))
        fields = {name: to[np.asarray(part, dtype=np.int64)] for name, part in codes.items()}
        return cls(words=[words[k] for k in order], ptr=ptr, last=last, **fields)

    def take(self, rows: Int64Array, value_ptr: Int64Array) -> Origins:
        """Those of some samples, ``[n] int64``, of a table with these measurements."""
        measurements, _ = ragged_rows(value_ptr, rows)
        perturbations, ptr = ragged_rows(self.ptr, measurements)
        changed: dict[str, Any] = {name: getattr(self, name)[measurements] for name in _OF_MEASUREMENTS}
        changed |= {name: getattr(self, name)[perturbations] for name in _OF_PERTURBATIONS}
        return replace(self, ptr=ptr, last=self.last[rows], **changed)

    @classmethod
    def joined(cls, first: Origins | None, then: Origins | None) -> Origins | None:
        """Those of two tables, one after the other; ``None`` if one of them has none."""
        if first is None or then is None:
            return None
        words = sorted({*first.words, *then.words})
        code = {word: k for k, word in enumerate(words)}
        to = [np.array([code[w] for w in part.words], dtype=np.int64) for part in (first, then)]
        both = {
            name: np.concatenate([to[0][getattr(first, name)], to[1][getattr(then, name)]])
            for name in (*_OF_MEASUREMENTS, *_OF_PERTURBATIONS)
        }
        genes = np.union1d(to[0][first.gene_set], to[1][then.gene_set])
        ptr = np.concatenate([first.ptr, then.ptr[1:] + first.ptr[-1]])
        last = np.concatenate([first.last, then.last])
        return cls(words=words, ptr=ptr, last=last, classes=to[0][first.classes], gene_set=genes, **both)

    def in_order(self, columns: Iterable[int]) -> Origins:
        """With the phenotypes in another order."""
        at = list(columns)
        return replace(self, last=self.last[:, at], classes=self.classes[at])

    def texts(self, name: str) -> list[str]:
        """A field's texts."""
        return [self.words[k] for k in getattr(self, name).tolist()]

    def by_sample(self, name: str, value_ptr: Int64Array) -> tuple[Int64Array, list[str]]:
        """Codes ``[num_samples]`` and their texts of ``dataset`` or ``kind``, several of a sample joined; -1 for none."""
        count, width = len(value_ptr) - 1, max(len(self.words), 1)
        owner = np.repeat(np.arange(count), np.diff(value_ptr))
        if name in _OF_PERTURBATIONS:
            owner = np.repeat(owner, np.diff(self.ptr))
        samples, codes = np.divmod(np.unique(owner * width + getattr(self, name)), width)
        ptr = np.searchsorted(samples, np.arange(count + 1))
        texts, state = [""], np.zeros(count, dtype=np.int64)
        for depth in range(int(np.diff(ptr).max(initial=0))):  # longer and longer beginnings
            rows = np.flatnonzero(np.diff(ptr) > depth)
            found, at = np.unique(state[rows] * width + codes[ptr[rows] + depth], return_inverse=True)
            state[rows] = len(texts) + at
            pairs = (divmod(each, width) for each in found.tolist())
            texts += [" | ".join(filter(None, (texts[a], self.words[b]))) for a, b in pairs]
        names = sorted({texts[k] for k in np.unique(state).tolist()} - {""})
        place = {text: k for k, text in enumerate(names)}
        return np.array([place.get(text, -1) for text in texts], dtype=np.int64)[state], names

    def digest(self) -> str:
        """SHA-256 of all of it, hexadecimal."""
        codes = [array_digest(getattr(self, name).astype(np.int64)) for name in (*_CODES, "ptr")]
        return sha256_json([list(self.words), *codes, array_digest(self.last)])

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All but the words, by field; counts instead of offsets."""
        return {name: getattr(self, name) for name in (*_CODES, "last")} | {"count": np.diff(self.ptr)}

    @classmethod
    def from_arrays(cls, words: Sequence[str], arrays: Mapping[str, npt.NDArray[Any]]) -> Origins:
        """Inverse of :meth:`arrays`."""
        fields = {name: arrays[name] for name in (*_CODES, "last")}
        return cls(words=words, ptr=offsets(arrays["count"]), **fields)

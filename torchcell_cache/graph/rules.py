"""Boolean gene rules of metabolic models: which reactions a knock-out switches off.

A rule such as ``b0001 and (b0002 or b0003)`` says which genes a reaction needs. It is brought into
disjunctive normal form once - a list of *complexes*, each a set of genes that suffices - and a batch of
knock-outs is then evaluated with array operations: a reaction is lost when every complex of it lost a gene.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.ragged import Int64Array, offsets, ragged_arange
from torchcell_cache.errors import SettingError, SourceContractError

Complexes: TypeAlias = tuple[tuple[str, ...], ...]

MAX_COMPLEXES = 4096
"""Largest normal form of one rule: real models need a few dozen, but the form can grow exponentially."""

_TOKEN = re.compile(r"\s*([()]|&&?|\|\|?|[\w.:\-'\"/\\=]+)")
_SIGNS = {"and": "and", "&": "and", "&&": "and", "or": "or", "|": "or", "||": "or", "(": "(", ")": ")"}
_EXCERPT = 60


def parse_rule(text: str, limit: int = MAX_COMPLEXES) -> Complexes:
    r"""Disjunctive normal form of a boolean gene rule.

    ``and`` (``&``, ``&&``) binds stronger than ``or`` (``|``, ``||``), both in any case; a rule is written
    in words or in signs. Names may hold what cobra's may: letters, digits and ``_ - . : ' " / \ =``.

    Raises:
        SourceContractError: If the rule is malformed; names position and text.
        SettingError: If the normal form has more than ``limit`` complexes.
    """
    return _parsed(_text(text), limit)


@lru_cache(maxsize=1 << 14)
def _parsed(text: str, limit: int) -> Complexes:
    bits: dict[str, int] = {}
    masks = _Parser(text, limit, bits).parse()
    names = list(bits)
    return tuple(sorted(tuple(sorted(names[k] for k in _set_bits(mask))) for mask in masks))


def _set_bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def rule_genes(text: str) -> tuple[str, ...]:
    """All gene names of a rule, sorted, also those its normal form no longer needs (``A or (A and B)``)."""
    return tuple(sorted({name for name, _ in _tokens(_text(text)) if name.lower() not in _SIGNS}))


def rewritten_rule(text: str, names: Mapping[str, str]) -> str:
    """The rule with other names for its genes; the text itself if none of them has another name.

    Example:
        >>> rewritten_rule("cyc1 & (A | B)", {"cyc1": "YJR048W"})
        'YJR048W and ( A or B )'
    """
    tokens = [token for token, _ in _tokens(text)]
    if all(names.get(token, token) == token for token in tokens):
        return text
    return " ".join(_SIGNS.get(token.lower()) or names.get(token, token) for token in tokens)


@dataclass(frozen=True, slots=True, eq=False)
class GeneRules:
    """The rules of all reactions of a model as flat arrays.

    Attributes:
        complex_reaction: Reaction of each complex, ascending, ``[num_complexes] int64``.
        gene_ptr: Offsets into ``gene_complexes``, ``[num_genes + 1] int64``.
        gene_complexes: Complexes each gene is part of, ascending per gene, ``[nnz] int64``.
        complexes_per_reaction: 0 for a reaction without rule, ``[num_reactions] int64``.
    """

    complex_reaction: Int64Array
    gene_ptr: Int64Array
    gene_complexes: Int64Array
    complexes_per_reaction: Int64Array

    @classmethod
    def from_strings(
        cls, rules: Sequence[str], gene_ids: Sequence[str], *, reaction_ids: Sequence[str] | None = None
    ) -> GeneRules:
        """Parse one rule per reaction.

        Raises:
            SourceContractError: If a rule is malformed or names a gene that is not in ``gene_ids``.
            SettingError: If a rule's normal form is too large.
        """
        position = {name: k for k, name in enumerate(gene_ids)}
        repeated = {name for name, n in Counter(gene_ids).items() if n > 1}
        genes: list[int] = []
        complexes: list[int] = []
        owner: list[int] = []
        for reaction, text in enumerate(rules):
            try:
                parsed = parse_rule(text)
                for name in rule_genes(text):
                    if name not in position:
                        said = f"unknown gene '{name}' in the gene rule, not one of {len(position)} genes"
                        raise SourceContractError(said)
                    if name in repeated:
                        raise SourceContractError(
                            f"gene '{name}' of the gene rule is the name of several genes"
                        )
            except (SourceContractError, SettingError) as error:
                name = "" if reaction_ids is None else f" ('{reaction_ids[reaction]}')"
                raise error.within(f"reaction {reaction}{name}") from None
            for names in parsed:
                genes.extend(position[name] for name in names)
                complexes.extend([len(owner)] * len(names))
                owner.append(reaction)
        gene_of = np.array(genes, dtype=np.int64)
        order = np.argsort(gene_of, kind="stable")
        complex_reaction = np.array(owner, dtype=np.int64)
        return cls(
            complex_reaction=complex_reaction,
            gene_ptr=offsets(np.bincount(gene_of, minlength=len(gene_ids))),
            gene_complexes=np.array(complexes, dtype=np.int64)[order],
            complexes_per_reaction=np.bincount(complex_reaction, minlength=len(rules)).astype(np.int64),
        )

    def removed_reactions(self, ids: npt.NDArray[Any], ptr: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Reactions that no complex can catalyse any more, sample by sample, and their offsets ``[batch + 1] int64``.

        Raises:
            SourceContractError: If an id is not a gene.
        """
        ids = np.asarray(ids, dtype=np.int64)
        num_genes, num_samples = len(self.gene_ptr) - 1, len(ptr) - 1
        if len(ids) and (ids.min() < 0 or ids.max() >= num_genes):
            raise SourceContractError(f"gene ids {ids.min()}..{ids.max()} of a model with {num_genes} genes")
        counts = self.gene_ptr[ids + 1] - self.gene_ptr[ids]
        hit = self.gene_complexes[ragged_arange(self.gene_ptr[ids], counts)]
        sample = np.repeat(np.repeat(np.arange(num_samples, dtype=np.int64), np.diff(ptr)), counts)
        # A complex that lost two genes counts once, so (sample, complex) pairs are made unique first.
        width = max(len(self.complex_reaction), 1)
        sample, broken = np.divmod(np.unique(sample * width + hit), width)
        width = max(len(self.complexes_per_reaction), 1)
        pair, lost = np.unique(sample * width + self.complex_reaction[broken], return_counts=True)
        sample, reaction = np.divmod(pair, width)
        gone = lost == self.complexes_per_reaction[reaction]
        return reaction[gone], offsets(np.bincount(sample[gone], minlength=num_samples))


class _Parser:
    """Shunting-yard over bit masks of genes: no recursion, so no rule can exhaust the stack."""

    def __init__(self, text: str, limit: int, bits: dict[str, int]) -> None:
        self.text, self.limit, self.bits = text, limit, bits
        self.values: list[list[int]] = []
        self.operators: list[tuple[str, int]] = []

    def parse(self) -> list[int]:
        """Masks of the minimal complexes."""
        want_name, end = True, len(self.text)
        style: bool | None = None
        for token, at in _tokens(self.text):
            word = _SIGNS.get(token.lower(), "")
            if want_name:
                if word in {"and", "or", ")"}:
                    raise _malformed(self.text, at, f"expected a gene name or '(', got '{token}'")
                want_name = word == "("
                if want_name:
                    self.operators.append((word, at))
                else:
                    self.values.append([1 << self.bits.setdefault(token, len(self.bits))])
            elif word == ")":
                self._reduce(strength="or")
                if not self.operators:
                    raise _malformed(self.text, at, "')' without '('")
                self.operators.pop()
            elif word in {"and", "or"}:
                # Cobra reads ``A | B and C`` as Python does, ``(A | B) and C``; others as ``A or (B and C)``.
                if style not in (None, token.isalpha()):
                    said = f"got '{token}', but the rule mixes and, or with & and |"
                    raise _malformed(self.text, at, said)
                style = token.isalpha()
                self._reduce(strength=word)
                self.operators.append((word, at))
                want_name = True
            else:
                raise _malformed(self.text, at, f"expected 'and', 'or' or ')', got '{token}'")
        if want_name:
            if not self.operators:
                return []
            raise _malformed(self.text, end, "expected a gene name, got the end")
        self._reduce(strength="or")
        if self.operators:
            raise _malformed(self.text, self.operators[-1][1], "'(' is never closed")
        return self._absorb(self.values.pop())

    def _reduce(self, strength: str) -> None:
        """Apply waiting operators that bind at least as strongly."""
        while self.operators and self.operators[-1][0] in ({"and"} if strength == "and" else {"and", "or"}):
            word, _ = self.operators.pop()
            right, left = self.values.pop(), self.values.pop()
            if word == "or":
                left.extend(right)
                self.values.append(left)
            else:
                left, right = self._absorb(left), self._absorb(right)
                self._check_size(len(left) * len(right))
                self.values.append(self._absorb([a | b for a in left for b in right]))

    def _absorb(self, masks: list[int]) -> list[int]:
        """Drop repeats and every complex that contains another one."""
        if len(masks) == 1:
            return masks
        kept: list[int] = []
        for mask in sorted(set(masks), key=int.bit_count):
            if not any(smaller & mask == smaller for smaller in kept):
                kept.append(mask)
                self._check_size(len(kept))
        return kept

    def _check_size(self, size: int) -> None:
        if size > self.limit:
            raise SettingError(
                f"the gene rule {_excerpt(self.text, 0)} has a normal form of {size} complexes or more, "
                f"limit {self.limit}",
                fix='simplify the rule, or use gpr="any"',
            )


def _text(rule: Any) -> str:
    if not isinstance(rule, str):
        raise SourceContractError(
            f"the gene rule is {rule!r}, expected text", fix='"" for a reaction that needs no gene'
        )
    return rule


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    """Tokens and where they start."""
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            raise _malformed(text, at, f"unexpected character {text[at]!r}")
        yield match[1], match.start(1)
        at = match.end()


def _malformed(text: str, at: int, what: str) -> SourceContractError:
    return SourceContractError(
        f"malformed gene rule at character {at}: {what}, in {_excerpt(text, at)}",
        fix='join names by "and" and "or", with parentheses where needed',
    )


def _excerpt(text: str, at: int) -> str:
    start, stop = max(0, at - _EXCERPT), at + _EXCERPT
    return f"{'...' if start else ''}{text[start:stop]!r}{'...' if stop < len(text) else ''}"

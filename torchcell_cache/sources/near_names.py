"""Why names do not meet: what two sides would have in common in another case, without a prefix, a suffix or quotes."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

_LOOK_AT = 100
"""Names that are looked at; a file whose names do not match has its reason in the first of them."""

_MARK = r"[.:|/_\-\s]"


def hint(lost: Sequence[str], known: Collection[str]) -> str:
    """What would make the names meet known ones, or nothing."""
    some = list(lost[:_LOOK_AT])
    for name in some:
        parts = [part for part in re.split(r"[\s;,|+/&]+", name) if part]
        if len(parts) > 1 and all(part in known for part in parts):
            return f"{name!r} holds several names: the separator is another"
    for said, form in _FORMS:
        wanted = {form(name): name for name in reversed(some)}
        meet = next(((wanted[found], name) for name in known if (found := form(name)) in wanted), None)
        if meet is not None and meet[0] != meet[1]:
            return said.format(*map(repr, meet))
    return ""


def _number(name: str) -> str:
    whole = re.fullmatch(r"\s*0*(\d+)(?:\.0+)?\s*", name)
    return whole[1] if whole else name


_FORMS: tuple[tuple[str, Callable[[str], str]], ...] = (
    (
        "{} and {} differ in blanks or quotes",
        lambda name: name.strip(" \t\r\n\ufeff\u00a0\u200b\u200c\u200d\u2060\"'"),
    ),
    ("{} and {} differ in letter case only", str.casefold),
    ("{} and {} are one number written in two ways", _number),
    ("{} and {} differ by a prefix", lambda name: re.sub(rf"^[^.:|/_\s]*{_MARK}(?=.)", "", name, count=1)),
    ("{} and {} differ by a suffix", lambda name: re.sub(rf"(?<=.){_MARK}[^.:|/_\s\-]*$", "", name, count=1)),
)

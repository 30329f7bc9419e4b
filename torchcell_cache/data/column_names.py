"""Names of columns in an expression: as they were typed, where Python's parser would change or refuse them.

The parser takes identifiers in Unicode's NFKC form, in which a micro sign is a Greek letter and a decomposed umlaut one
character. So names that are not plain ASCII, and those in backticks, stand aside while it works.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable

PLACEHOLDER = "quoted_column_"
_PARTS = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|`([^`]*)`|(?:\w|[^\x00-\x7f])+""")


def set_aside(text: str) -> tuple[str, list[str]]:
    """The expression with placeholders for names that the parser must not see, and those names, by number."""
    names: list[str] = []

    def aside(match: re.Match[str]) -> str:
        word, quoted = match[0], match[1]
        if quoted is None and (word[0] in "'\"" or word.isascii() or not word.isidentifier()):
            return word
        names.append(word if quoted is None else quoted)
        return f" {PLACEHOLDER}{len(names) - 1} "

    return _PARTS.sub(aside, text), names


def typed(text: str, names: list[str]) -> str:
    """An excerpt of the expression with its names in the place of placeholders."""
    return re.sub(rf"{PLACEHOLDER}(\d+)", lambda match: f"`{names[int(match[1])]}`", text)


def meant(name: str, known: Iterable[str]) -> str:
    """The known name that ``name`` is, or the only one that looks the same; ``name`` itself if there is none."""
    known = list(known)
    if name in known:
        return name
    alike = [other for other in known if _form(other) == _form(name)]
    return alike[0] if len(alike) == 1 else name


def _form(name: str) -> str:
    return unicodedata.normalize("NFKC", name)


def suggestion(word: str, valid: list[str]) -> str:
    """``; did you mean 'x'? valid are ...`` for a message."""
    near = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    return (
        f"; did you mean {near[0]!r}? valid: {', '.join(valid)}" if near else f"; valid: {', '.join(valid)}"
    )

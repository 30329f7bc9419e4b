"""What one types in a shell: lists of names, such as ``[fitness, Double mutant fitness (DMF), 2024]``, and fixes as keys.

Hydra's grammar has no names with parentheses and takes ``2024`` for a number; columns are called anything.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
from collections.abc import Collection
from typing import Any, TextIO

_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_ITEM = re.compile(rf"\s*({_QUOTED}|[^,'\"\[\]{{}}][^,]*|\$\{{[^}}]*\}})\s*(?:,|$)", re.DOTALL)
_PAIR = re.compile(rf"\s*({_QUOTED}|[^,:'\"\[\]{{}}]+?)\s*:\s*({_QUOTED}|[^,'\"\[\]{{}}]+)(?:,|$)", re.DOTALL)
_ARGUMENT = re.compile(
    r"(?<![\w.\-/=\"'])([a-z]\w*)=(\"[^\"]*\"|'[^']*'|\[[^\[\]]*\]|\([^()]*\)|\{[^{}]*\}|True|False|None|(?:\d[\w.]*)?(?:\.\.\.)?)"
)
_ESCAPE = re.compile(r"\\(['\"\\])")


def names_of(text: str) -> list[str] | None:
    """The names of ``[a,b]`` or of one name; ``None`` if it is neither, such as ``a,b`` or ``[[a]]``."""
    body = text.strip()
    bracketed = len(body) > 1 and body[0] == "[" and body[-1] == "]"
    if bracketed:
        body = body[1:-1].strip()
    items = list(_ITEM.finditer(body))
    if body.endswith(",") or "".join(match[0] for match in items) != body:
        return None
    return [_plain(match[1]) for match in items] if bracketed or len(items) == 1 else None


def mapping_of(text: str) -> dict[str, str] | None:
    """The names of ``{old: new, "other name": newer}``; ``None`` if it is no such mapping."""
    body = text.strip()[1:-1].strip().removesuffix(",")
    pairs = list(_PAIR.finditer(body))
    if text.strip()[-1] != "}" or "".join(match[0] for match in pairs) != body:
        return None
    return {_plain(match[1]): _plain(match[2]) for match in pairs}


def as_list(names: list[str]) -> str:
    """The inverse: every name that needs it in quotes."""
    special = set(",'\"[]{}\\$")
    plain = {name for name in names if name and name == name.strip() and not special & set(name)}
    return f"[{', '.join(name if name in plain else _in_quotes(name) for name in names)}]"


def typed(value: Any) -> str:
    """A plain value as one types it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return as_list([str(item) for item in value])
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_in_quotes(str(k))}: {_in_quotes(str(v))}" for k, v in value.items()) + "}"
    return str(value)


def _in_quotes(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _plain(item: str) -> str:
    item = item.strip()
    return _ESCAPE.sub(r"\1", item[1:-1]) if item[0] in "'\"" else item


def for_shell(fix: str, keys: Collection[str]) -> str:
    """A fix with arguments such as ``nan="keep"`` as keys of the command that was run: ``source.nan=keep``."""
    if "torchcell-cache " in fix:
        return fix

    def in_shell(match: re.Match[str]) -> str:
        name, text = match[1], match[2]
        key = next((k for k in (name, f"source.{name}", f"processor.{name}") if k in keys), None)
        if key is None:
            return match[0]
        if "..." in text or not text:
            return f"{key}={text}"
        try:
            value = typed(ast.literal_eval(text))
        except (ValueError, SyntaxError):
            return f"{key}={text}"
        return shlex.quote(f"{key}={value}")

    return _ARGUMENT.sub(in_shell, fix)


_PAINTED = {
    "31;1": r"^error:|^  the builder .* is dead|: dead,|: failed,",
    "36": r"^ *(?:fix|to continue|to repeat|next):",
    "32": r"^complete:",
    "33": r"^(?:building|unfinished|array build):",
}


def painted(text: str, stream: TextIO) -> str:
    """``text`` with its first words in colour if ``stream`` is a terminal that wants colour."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    for code, words in _PAINTED.items():
        text = re.sub(words, f"\x1b[{code}m\\g<0>\x1b[0m", text, flags=re.MULTILINE)
    return text

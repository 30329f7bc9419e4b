"""Fix lines are written for Python; here they become what one types in a shell."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Collection

from torchcell_cache.cli.name_lists import typed

_ARGUMENT = re.compile(
    r"(?<![\w.\-/=\"'])([a-z]\w*)=(\"[^\"]*\"|'[^']*'|\[[^\[\]]*\]|\([^()]*\)|\{[^{}]*\}|True|False|None|(?:\d[\w.]*)?(?:\.\.\.)?)"
)


def for_shell(fix: str, keys: Collection[str]) -> str:
    """A fix with arguments such as ``nan="keep"`` as keys of a command: ``source.nan=keep``.

    Args:
        fix: As the error has it; lines that are commands already stay.
        keys: Keys of the command that was run, such as ``source.nan``.
    """
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

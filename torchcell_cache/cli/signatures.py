"""What signatures and docstrings say about settings, read from their text: nothing is imported, so help answers at once."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple, get_args

from torchcell_cache.core import choices

REQUIRED = "???"
"""Default of a key that has none, as OmegaConf writes it."""

_SECTION = re.compile(r"^(?:Args|Returns|Raises|Attributes|Example):$", re.MULTILINE)
_ENTRY = re.compile(r"^    (\w+): (.*(?:\n {5,}.*)*)", re.MULTILINE)


class Key(NamedTuple):
    """What a setting may be.

    Attributes:
        default: Plain value, or :data:`REQUIRED`.
        kind: Its type; also ``None`` is fine where that is the default.
        help: What the docstring says.
        item: Type of the members of a list.
        choices: The valid texts where only some are: those of an annotation that stands in ``core.choices``.
    """

    default: Any
    kind: type
    help: str
    item: type = str
    choices: tuple[str, ...] = ()


class Signature(NamedTuple):
    """Keys of a function, and the paragraphs before them."""

    keys: dict[str, Key]
    about: str


def signature(places: Sequence[str]) -> Signature:
    """Keys of the first place, then those of the others that it passes on; the text of the first.

    Args:
        places: Such as ``remote.copies:pull``, parameters that are no keys behind a minus: ``builder.grow:append - tail``.
    """
    first, *others = map(_read, places)
    keys = dict(first.keys)
    for name, key in (pair for other in others for pair in other.keys.items()):
        said = keys.get(name, key)
        keys[name] = said._replace(help=said.help or key.help, choices=said.choices or key.choices)
    return first._replace(keys=keys)


@functools.cache
def _read(place: str) -> Signature:
    where, _, left_out = place.partition(" - ")
    module, _, path = where.partition(":")
    file = resources.files("torchcell_cache") / (module.replace(".", "/") + ".py")
    tree: Any = ast.parse(file.read_text(encoding="utf-8"))
    node, doc = tree, ""
    for name in path.split("."):
        node = next(part for part in node.body if getattr(part, "name", None) == name)
        doc = ast.get_docstring(node) or doc
    about = _plain(_SECTION.split(doc, maxsplit=1)[0].strip())
    helps = {name: _plain(" ".join(text.split())) for name, text in _ENTRY.findall(doc)}
    keys: dict[str, Key] = {}
    if isinstance(node, ast.ClassDef):
        init = next((part for part in node.body if getattr(part, "name", None) == "__init__"), None)
        if init is None:  # it takes what the class above it takes
            base, imports = (
                ast.unparse(node.bases[0]),
                [p for p in tree.body if isinstance(p, ast.ImportFrom)],
            )
            homes = [str(part.module) for part in imports if base in {alias.name for alias in part.names}]
            home = (homes or [module])[0].removeprefix("torchcell_cache.")
            above = _read(f"{home}:{base} - {left_out}").keys
            keys = {name: key._replace(help=helps.get(name) or key.help) for name, key in above.items()}
        node = init
    for argument, default in [] if node is None else _arguments(node.args):
        name = argument.arg
        if name not in ("self", "cls", *left_out.split()):
            said = "" if argument.annotation is None else ast.unparse(argument.annotation)
            keys[name] = _key(said, default, helps.get(name, ""))
    example = inspect.cleandoc(doc.partition("\nExample:\n")[2]) if "torchcell-cache" in doc else ""
    return Signature(keys, "\n".join(filter(None, (about, *(f"  {line}" for line in example.splitlines())))))


def _plain(text: str) -> str:
    """Without markup, Python's constants as one types them."""
    text = re.sub(r"``|:(?:func|class|mod|attr|data):|(?<=[:(])`\.?|`", "", text)
    return re.sub(r"\b(?:None|True|False)\b", lambda m: "null" if m[0] == "None" else m[0].lower(), text)


def _arguments(given: ast.arguments) -> list[tuple[ast.arg, ast.expr | None]]:
    without = len(given.args) - len(given.defaults)
    defaults = [*[None] * without, *given.defaults, *given.kw_defaults]
    return [*zip(given.args + given.kwonlyargs, defaults, strict=True)]


def _key(annotation: str, default: ast.expr | None, text: str) -> Key:
    try:
        value = REQUIRED if default is None else ast.literal_eval(default)
    except ValueError:  # no literal: the function that passes the key on says it again
        value = REQUIRED
    annotation = annotation.removesuffix(" | None")
    several = re.match(r"(?:str \| )?(?:Sequence|Iterable)\[(\w+)", annotation)
    item = {"int": int, "float": float}.get(several[1], str) if several else str
    kinds = {"int": int, "float": float, "bool": bool, "bool | float": float, "Mapping[str, Any]": dict}
    kind = list if several else kinds.get(annotation, str)
    if kind is dict and value is None:
        value = {}
    valid = get_args(getattr(choices, annotation, None))
    return Key(list(value) if isinstance(value, tuple) else value, kind, text, item, valid)

"""Hooks of the site: links out of docs/ become text, and roles of docstrings (``:class:`~x.Y```) become code."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|mod|attr|data|meth):`[~.]?([\w.]+)`")
_OUT = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?:[A-Z][\w./-]*|experiments[\w./-]*)\)")


class Roles(griffe.Extension):
    """Docstrings as Markdown."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(lambda m: f"`{m[1].rpartition('.')[2]}`", obj.docstring.value)


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Files beside docs/ are no pages of the site, and there is no public address yet."""
    return _OUT.sub(r"\1", markdown)


def on_config(config: Any) -> Any:
    """The extension above, by its place."""
    options = config.plugins["mkdocstrings"].config.handlers["python"].setdefault("options", {})
    options["extensions"] = ["docs/hooks.py"]
    return config

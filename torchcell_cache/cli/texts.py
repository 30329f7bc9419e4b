"""Help texts. They are made of signatures and docstrings, so that it says what is."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping

from torchcell_cache.cli.name_lists import typed
from torchcell_cache.cli.registry import COMMANDS, GROUPS, choices_of, default_choice, keys_of, keys_of_choice
from torchcell_cache.cli.signatures import REQUIRED, Key, signature

_EXIT_CODES = (
    "exit codes: 0 fine, 2 usage, 65 corrupt or stale, 73 cannot write, 75 interrupted (same command resumes)"
)
_COLUMN, _WIDTH = 24, 128


def overview() -> str:
    """Help of the program."""
    lines = ["torchcell-cache <command> key=value ...", "", "commands:"]
    for name, places in COMMANDS.items():
        first = signature(places).about.partition("\n")[0].rstrip(".")
        lines.append(f"  {name:<12}{first[0].lower()}{first[1:]}")
    lines += ["", "torchcell-cache <command> --help lists the keys of a command", _EXIT_CODES]
    return "\n".join(lines)


def config_text(name: str) -> str:
    """Keys and defaults of a command, or of ``source/table``, with what they mean, as a settings file would have them."""
    group, _, chosen = name.partition("/")
    places = GROUPS[group][chosen] if chosen else COMMANDS[group]
    about = [f"# {line}".rstrip() for line in signature(places).about.splitlines()]
    return "\n".join([*about, *_explained(keys_of_choice(group, chosen) if chosen else keys_of(group)), ""])


def command_help(command: str) -> str:
    """Help of one command: its keys with their defaults."""
    parts = [f"torchcell-cache {command} key=value ...", "", config_text(command)]
    for group in GROUPS:
        if group in keys_of(command):
            default = default_choice(command, group)
            chosen = [name for name in GROUPS[group] if name != "none" or default is not None]
            said = f", by default {default}" if default else ""
            parts += [f"{group}={'|'.join(chosen)}{said}, with these keys:", ""]
            parts += [
                config_text(f"{group}/{name}").replace("# ", f"# {group}={name}: ", 1) for name in chosen
            ]
    return "\n".join([*parts, _EXIT_CODES])


def _explained(keys: Mapping[str, Key]) -> Iterable[str]:
    for name, key in keys.items():
        if name in GROUPS:
            continue
        said = " | ".join(choices_of(name)) + ": " * bool(choices_of(name) and key.help) + key.help
        value = "(required)" if key.default == REQUIRED else typed(key.default)
        first, *rest = textwrap.wrap(said, _WIDTH - _COLUMN) or [""]
        yield f"{f'{name}: {value}':<{_COLUMN - 2}}  # {first}".rstrip(" #")
        yield from (f"{'':<{_COLUMN}}# {line}" for line in rest)

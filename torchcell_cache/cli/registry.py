"""What can be named: commands, sources and processors. Where each is, and whose parameters are its keys.

The first place is called; it passes on what it does not take itself. A new source is a function in :mod:`.makers` and a line
here.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from torchcell_cache.cli.signatures import REQUIRED, Key, signature
from torchcell_cache.cli.words import typed

if TYPE_CHECKING:
    from torchcell_cache.cli.settings import Settings

COMMANDS = {
    "init": ("cli.init:init",),
    "preprocess": ("cli.commands:preprocess", "builder.run:build"),
    "import-torchcell": (
        "cli.commands:import_torchcell",
        "data.api:import_torchcell",
        "builder.run:build - source processor max_record_bytes",
    ),
    "append": ("cli.commands:append", "builder.grow:append - tail"),
    "update": ("cli.commands:update", "builder.grow:update"),
    "info": ("cli.contents:info",),
    "verify": ("cli.commands:verify", "builder.check.verify:verify"),
    "repair": ("cli.commands:repair", "builder.check.repair:repair"),
    "status": ("cli.status:status",),
    "stage": ("cli.commands:stage", "remote.copies:stage"),
    "push": ("cli.commands:push", "remote.push:push"),
    "pull": ("cli.commands:pull", "remote.copies:pull"),
    "gc": ("cli.commands:gc", "builder.generations:gc"),
    "select": (
        "cli.contents:select",
        "data.select:select - dataset listed",
        "data.api:save_subset - view root made_by",
    ),
    "split": (
        "cli.contents:split",
        "data.split_nodes:split_by_perturbation - dataset",
        "data.split_groups:split_by_group - dataset",
    ),
    "bench": ("cli.bench.command:bench", "cli.bench.store:bench_store - on_progress"),
    "completion": ("cli.completion:completion",),
}
POSITIONAL = {"init": ("what", "to"), "completion": ("shell",)}
"""Keys whose names may be left out, in their order; ``root`` of all other commands."""

GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "source": {
        "ecoli": ("cli.makers:ecoli", "sources.ecoli:EcoliKnockouts"),
        "yeast": ("cli.makers:yeast", "sources.yeast.folder:YeastKnockouts - scores"),
        "table": (
            "cli.makers:table",
            "sources.table:PerturbationTable.from_csv",
            "sources.table:PerturbationTable - perturbations source_ids node_type",
        ),
        "anndata": ("cli.makers:anndata", "sources.cells.source:AnnDataSource - node_type storage_options"),
        "neo4j": (
            "cli.makers:neo4j",
            "sources.neo4j.source:Neo4jCellDataset - query gene_set incidence_graphs columns password",
        ),
        "python": ("cli.makers:python_source",),
        "none": ("cli.makers:no_source",),
    },
    "processor": {
        "lazy": ("processors.lazy:LazySubgraphRepresentation",),
        "subgraph": ("processors.subgraph:SubgraphRepresentation",),
        "perturbation": ("processors.perturbation:Perturbation",),
        "unperturbed": ("processors.perturbation:Unperturbed",),
        "dcell": ("processors.perturbation:DCellGraphProcessor",),
        "khop": ("processors.khop:KHopSubgraph",),
        "python": ("cli.makers:python_processor",),
        "none": ("cli.makers:no_processor",),
    },
}

_ALWAYS = {
    "debug": Key(False, bool, "print the traceback of an error"),
    "config": Key(None, str, "YAML file with any of these keys, such as  source: ecoli  and  source.seed: 1"),
    "json": Key(False, bool, "print the result as JSON"),
}


def with_names(arguments: Sequence[str]) -> list[str]:
    """The arguments, those before the first ``key=value`` as values of the keys they stand for: ``root`` comes first."""
    command, *rest = arguments
    for k, (name, text) in enumerate(zip(POSITIONAL.get(command, ("root",)), rest, strict=False)):
        if re.match(r"[\w.+~@]*=|-", text) or not text or name not in keys_of(command):
            break
        rest[k] = f"{name}={text}"
    return [command, *rest]


def keys_of(command: str) -> dict[str, Key]:
    """Keys of a command, ``source`` and ``processor`` too where it has them."""
    keys = signature(COMMANDS[command]).keys
    for group, made in GROUPS.items():
        if group in keys:
            valid = [name for name in made if name != "none" or keys[group].default != REQUIRED]
            keys[group] = keys[group]._replace(choices=tuple(valid))
    more = {k: v for k, v in _ALWAYS.items() if k not in keys and (command, k) != ("completion", "json")}
    return keys | more


def keys_of_choice(group: str, name: str) -> dict[str, Key]:
    """Keys of ``source=name`` or ``processor=name``, such as ``source.path``."""
    keys = signature(GROUPS[group][name]).keys
    return {f"{group}.{key}": spec for key, spec in keys.items() if key != "progress"}


def make(settings: Settings, group: str) -> Any:
    """The chosen source or processor, ``None`` for ``none``.

    Raises:
        SettingError, SourceContractError: If it cannot be made from its settings.
    """
    places = GROUPS[group][settings.choices[group]]
    more = {"progress": settings["progress"]} if "progress" in signature(places).keys else {}
    return resolve_name(f"torchcell_cache.{places[0]}")(**settings[group], **more)


def run(settings: Settings) -> int:
    """Run a command, which makes source and processor when it has looked at the rest, and print what it says.

    Returns:
        The exit code.
    """
    places = COMMANDS[settings.command]
    passed = {key: settings[key] for key in signature(places).keys if key not in settings.choices}
    passed |= {group: partial(make, settings, group) for group in settings.choices}
    found = resolve_name(f"torchcell_cache.{places[0]}")(**passed)
    if not isinstance(found, tuple):
        return found or 0
    text, facts = found
    print(json.dumps(facts, indent=1) if settings["json"] else text)
    return 0


# Help: made of signatures and docstrings, so that it says what is

_EXIT_CODES = (
    "exit codes: 0 fine, 2 usage, 65 corrupt or stale, 73 cannot write, 75 interrupted (same command resumes)"
)
_COLUMN, _WIDTH = 24, 128


def overview() -> str:
    """Help of the program."""
    lines = ["torchcell-cache <command> key=value ...", "", "commands:"]
    for name, places in COMMANDS.items():
        first = signature(places).about.partition("\n")[0].rstrip(".")
        lines.append(f"  {name:<18}{first[0].lower()}{first[1:]}")
    lines += ["", "torchcell-cache <command> --help lists the keys of a command", _EXIT_CODES]
    return "\n".join(lines)


def config_text(name: str) -> str:
    """Keys and defaults of a command, or of ``source/table``, with what they mean, as a settings file would have them."""
    group, _, chosen = name.partition("/")
    about = signature(GROUPS[group][chosen] if chosen else COMMANDS[group]).about
    lines = [f"# {line}".rstrip() for line in about.splitlines()]
    for key, spec in (keys_of_choice(group, chosen) if chosen else keys_of(group)).items():
        if key in GROUPS:
            continue
        said = ": ".join(filter(None, (" | ".join(spec.choices), spec.help)))
        value = "(required)" if spec.default == REQUIRED else typed(spec.default)
        first, *rest = textwrap.wrap(said, _WIDTH - _COLUMN) or [""]
        lines.append(f"{f'{key}: {value}':<{_COLUMN - 2}}  # {first}".rstrip(" #"))
        lines += [f"{'':<{_COLUMN}}# {line}" for line in rest]
    return "\n".join([*lines, ""])


def command_help(command: str, arguments: Iterable[str] = ()) -> str:
    """Help of one command: its keys with their defaults, those of a source or processor only where it is chosen."""
    keys, first = keys_of(command), POSITIONAL.get(command, ("root",))[0]
    shown = f"{first.upper()} " if first in keys else ""
    parts = [f"torchcell-cache {command} {shown}key=value ...", "", config_text(command)]
    given = dict(argument.partition("=")[::2] for argument in arguments)
    for group in filter(keys.__contains__, GROUPS):
        if (chosen := given.get(group)) in keys[group].choices:
            parts += [f"{group}={chosen}, with these keys:", "", config_text(f"{group}/{chosen}")]
            continue
        default = keys[group].default
        said = f", by default {default}" if default != REQUIRED else ""
        parts += [f"{group}=...{said}; {group}=NAME --help lists the keys of one:", ""]
        for name in keys[group].choices:
            about = signature(GROUPS[group][name]).about.partition("\n")[0]
            short = textwrap.shorten(about, _WIDTH - _COLUMN, placeholder="...")
            parts.append(f"  {f'{group}={name}':<{_COLUMN}}# {short}")
        parts.append("")
    return "\n".join([*parts, _EXIT_CODES])

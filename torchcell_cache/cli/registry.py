"""What can be named: commands, sources and processors. Where each is, and whose parameters are its keys.

The first place is called; it passes on what it does not take itself. A new source is a function in :mod:`.makers` and a line
here.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
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
        "cli.importing:import_torchcell",
        "data.api:import_torchcell",
        "builder.run:build - source processor max_record_bytes",
    ),
    "append": ("cli.commands:append", "builder.grow:append - tail"),
    "update": ("cli.commands:update", "builder.grow:update"),
    "info": ("cli.info:info",),
    "verify": ("cli.commands:verify", "builder.check.verify:verify"),
    "repair": ("cli.commands:repair", "builder.check.repair:repair"),
    "status": ("cli.status:status",),
    "stage": ("cli.commands:stage", "remote.copies:stage"),
    "push": ("cli.commands:push", "remote.push:push"),
    "pull": ("cli.commands:pull", "remote.pull:pull"),
    "gc": ("cli.commands:gc", "builder.generations:gc"),
    "select": (
        "cli.selections:select",
        "data.select:select - dataset listed",
        "data.api:save_subset - view root made_by",
    ),
    "split": (
        "cli.selections:split",
        "data.split_nodes:split_by_perturbation - dataset",
        "data.split_groups:split_by_group - dataset",
    ),
    "bench": ("cli.bench.command:bench", "cli.bench.store:bench_store - on_progress"),
    "completion": ("cli.completion:completion",),
}
POSITIONAL = {"init": ("what", "to"), "completion": ("shell",)}
"""Keys whose names may be left out, in their order; ``root`` of all other commands."""

_DELETION = "processors.deletion:DeletionProcessor"
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
        "lazy": ("processors.lazy:LazySubgraphRepresentation", _DELETION),
        "subgraph": ("processors.subgraph:SubgraphRepresentation", _DELETION),
        "perturbation": ("processors.perturbation:Perturbation",),
        "unperturbed": ("processors.perturbation:Unperturbed",),
        "dcell": ("processors.dcell:DCellGraphProcessor",),
        "khop": ("processors.khop:KHopSubgraph",),
        "python": ("cli.makers:python_processor",),
        "none": ("cli.makers:no_processor",),
    },
}

_CHOICES = {
    "what": "train slurm",
    "shell": "bash zsh",
    "storage": "auto perturbation delta full",
    "on_stale": "error rebuild warn",
    "level": "quick full",
    "match": "any all only",
    "by": "perturbation group random",
    "controls": "random train",
    "names": "unseen gears",
    "processor.gpr": "any rule",
    "processor.flow": "both source_to_target target_to_source",
    "processor.perturbed": "keep delete",
    "processor.statistics": "measured always",
    "source.flavor": "seurat cell_ranger seurat_v3",
    "source.unknown": "error skip drop keep",
    "source.duplicate": "error unique",
    "source.empty": "error keep",
    "source.nan": "error keep skip",
    "source.replicates": "keep group mean error",
    "source.duplicates": "keep group mean error",
    "source.malformed": "error skip",
}
"""What annotations do not say: texts of which only some are valid."""

_ALWAYS = {
    "debug": Key(False, bool, str, "print the traceback of an error"),
    "config": Key(
        None, str, str, "YAML file with any of these keys, such as  source: ecoli  and  source.seed: 1"
    ),
}


def with_names(arguments: Sequence[str]) -> list[str]:
    """The arguments, those before the first ``key=value`` as values of the keys they stand for: ``root`` comes first."""
    command, *rest = arguments
    for k, name in enumerate(POSITIONAL.get(command, ("root",))):
        if (
            k >= len(rest)
            or re.match(r"[\w.+~@]*=|-", rest[k])
            or not rest[k]
            or name not in keys_of(command)
        ):
            break
        rest[k] = f"{name}={rest[k]}"
    return [command, *rest]


def choices_of(key: str) -> list[str]:
    """The valid texts of a key, none if it may be any."""
    return _CHOICES.get(key, "").split()


def keys_of(command: str) -> dict[str, Key]:
    """Keys of a command, ``source`` and ``processor`` too where it has them."""
    return signature(COMMANDS[command]).keys | _ALWAYS


def keys_of_choice(group: str, name: str) -> dict[str, Key]:
    """Keys of ``source=name`` or ``processor=name``, such as ``source.path``."""
    keys = signature(GROUPS[group][name]).keys
    return {f"{group}.{key}": spec for key, spec in keys.items() if key != "progress"}


def default_choice(command: str, group: str) -> str | None:
    """What a command takes for ``source`` or ``processor`` if nothing is said, ``None`` if it must be."""
    default: str = keys_of(command)[group].default
    return None if default == REQUIRED else default


def make(settings: Settings, group: str) -> Any:
    """The chosen source or processor, ``None`` for ``none``.

    Raises:
        SettingError, SourceContractError: If it cannot be made from its settings.
    """
    more = {"progress": settings["progress"]} if group == "source" else {}
    return called(GROUPS[group][settings.choices[group]], {**settings[group], **more})


def run(settings: Settings) -> int:
    """Run a command; it makes source and processor when it has looked at the rest.

    Returns:
        The exit code.
    """
    passed = {key: value for key, value in settings.values.items() if key not in _ALWAYS}
    passed |= {group: partial(make, settings, group) for group in settings.choices}
    return called(COMMANDS[settings.command], passed) or 0


def called(places: Sequence[str], values: Mapping[str, Any]) -> Any:
    """What the first place returns."""
    return resolve_name(f"torchcell_cache.{places[0]}")(**values)


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
    places = GROUPS[group][chosen] if chosen else COMMANDS[group]
    about = [f"# {line}".rstrip() for line in signature(places).about.splitlines()]
    return "\n".join([*about, *_explained(keys_of_choice(group, chosen) if chosen else keys_of(group)), ""])


def command_help(command: str, arguments: Iterable[str] = ()) -> str:
    """Help of one command: its keys with their defaults, those of a source or processor only where it is chosen."""
    first = POSITIONAL.get(command, ("root",))[0]
    shown = f"{first.upper()} " if first in keys_of(command) else ""
    parts = [f"torchcell-cache {command} {shown}key=value ...", "", config_text(command)]
    given = dict(argument.partition("=")[::2] for argument in arguments)
    for group in GROUPS:
        if group in keys_of(command):
            default = default_choice(command, group)
            valid = [name for name in GROUPS[group] if name != "none" or default is not None]
            if given.get(group) in valid:
                parts += [
                    f"{group}={given[group]}, with these keys:",
                    "",
                    config_text(f"{group}/{given[group]}"),
                ]
                continue
            said = f", by default {default}" if default else ""
            parts += [f"{group}=...{said}; {group}=NAME --help lists the keys of one:", ""]
            parts += [
                f"  {f'{group}={name}':<{_COLUMN}}# {_headline(GROUPS[group][name])}" for name in valid
            ] + [""]
    return "\n".join([*parts, _EXIT_CODES])


def _headline(places: Sequence[str]) -> str:
    """The first sentence of what it is."""
    first: str = signature(places).about.partition("\n")[0]
    return first if len(first) <= _WIDTH - _COLUMN else first[: _WIDTH - _COLUMN - 3] + "..."


def _explained(keys: Mapping[str, Key]) -> Iterable[str]:
    for name, key in keys.items():
        if name in GROUPS:
            continue
        said = " | ".join(choices_of(name)) + ": " * bool(choices_of(name) and key.help) + key.help
        value = "(required)" if key.default == REQUIRED else typed(key.default)
        first, *rest = textwrap.wrap(said, _WIDTH - _COLUMN) or [""]
        yield f"{f'{name}: {value}':<{_COLUMN - 2}}  # {first}".rstrip(" #")
        yield from (f"{'':<{_COLUMN}}# {line}" for line in rest)

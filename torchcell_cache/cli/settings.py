"""From ``key=value`` to checked settings. The only file that imports Hydra.

Hydra composes the settings files and parses values; nothing is ever instantiated from them. What a setting may be is
fixed here and in :mod:`.registry`, and a ``_target_`` anywhere - in an override, a config file, an interpolation - is
refused before it could mean anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from torchcell_cache.cli.name_lists import names_of
from torchcell_cache.cli.texts import GROUPS, WITH_GROUPS, suggestion
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import SettingError, UnsafeContentError

INTEGERS = {
    "task", "tasks", "num_workers", "shard_size", "max_record_bytes", "num_samples", "seed", "shard", "keep", "bins",
    "batch_size", "num_batches", "source.num_samples", "source.seed",
}  # fmt: skip
INTEGERS |= {"n", "processor.num_hops", "source.page_size", "source.retries"}
NUMBERS = {"seconds", "step_ms", "wait"}
BOOLEANS = {
    "overwrite",
    "force",
    "finalize",
    "progress",
    "debug",
    "json",
    "cold",
    "allow_empty",
    "unfinished",
    "dry_run",
    "source.self_loops",
    "source.refresh",
}
INTEGER_LISTS = {"workers"}
NUMBER_LISTS = {"fractions", "seen_fractions"}
LISTS = {"source.perturbed", "source.phenotypes", "source.statistics", "genes", "without"}
LISTS |= {"processor.edge_types", "exclude_keys"} | INTEGER_LISTS | NUMBER_LISTS
INTEGERS |= {"source.column", "source.n_top_genes", "source.hvg_cells"}
NUMBERS |= {"source.target_sum"}
BOOLEANS |= {"source.raw", "source.log1p"}
LISTS |= {"train", "val", "test"}
LISTS |= {"source.files", "source.categories", "source.perturbation", "source.control"}
MAPPINGS = {"storage_options", "source.settings", "processor.settings", "source.parameters", "source.graphs"}
CHOICES = {
    "storage": ("auto", "perturbation", "delta", "full"),
    "on_stale": ("error", "rebuild", "warn"),
    "level": ("quick", "full"),
    "match": ("any", "all", "only"),
    "by": ("perturbation", "group", "random"),
    "controls": ("random", "train"),
    "names": ("unseen", "gears"),
    "processor.gpr": ("any", "rule"),
    "processor.flow": ("both", "source_to_target", "target_to_source"),
    "processor.perturbed": ("keep", "delete"),
    "processor.statistics": ("measured", "always"),
    "source.flavor": ("seurat", "cell_ranger", "seurat_v3"),
    "source.unknown": ("error", "skip", "drop"),
    "source.duplicate": ("error", "unique"),
    "source.empty": ("error", "keep"),
    "source.nan": ("error", "keep", "skip"),
    "source.replicates": ("keep", "group", "mean", "error"),
    "source.duplicates": ("keep", "group", "mean", "error"),
    "source.malformed": ("error", "skip"),
}
_EXECUTES = "_target_"
_NAME_LISTS = LISTS - INTEGER_LISTS - NUMBER_LISTS


@dataclass(frozen=True, slots=True)
class Settings:
    """Checked settings of one command.

    Attributes:
        command: Its name.
        values: Settings by key, plain values.
        choices: What was chosen for ``source`` and ``processor``.
    """

    command: str
    values: dict[str, Any]
    choices: dict[str, str]

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    @property
    def keys(self) -> set[str]:
        """All keys of the command, those of the chosen source and processor included."""
        return {key for key, _ in _flat(self.values, "")} | self.choices.keys()


def read_settings(command: str, arguments: list[str]) -> Settings:
    """Parse and check the arguments of a command.

    Raises:
        SettingError: An unknown key, a misspelt choice, a value of another type, a key that is missing; the message
            names the valid ones.
        UnsafeContentError: A ``_target_``, or code named in a config file.
    """
    given = [_parse(command, argument) for argument in arguments]
    _refuse_repeats(command, given)
    path = next((value for key, value in reversed(given) if key == "config"), None)
    recipe = [] if path is None else list(_read_config(local_path(str(path), "config")))
    for key, value in recipe:
        if key in GROUPS and value == "python":
            raise UnsafeContentError(
                f"{path} says {key}: python; code that is executed can only be named on the command line",
                path=str(path),
                fix=f"add {key}=python {key}.file=... to the command",
            )
    pairs = {**dict(recipe), **dict(given)}
    choices = _choices(command, pairs)
    base = _composed(command, choices)
    valid = _keys(base)
    for key, value in pairs.items():
        if key in choices and isinstance(value, str):
            continue
        if key not in valid:
            raise SettingError(
                f"{command} has no key {key!r}{suggestion(key, [*choices, *valid])}",
                fix=f"torchcell-cache {command} --help",
            )
        OmegaConf.update(base, key, _checked(key, value, OmegaConf.select(base, key, throw_on_missing=False)))
    return Settings(command, _resolved(command, base), choices)


def _refuse_repeats(command: str, given: list[tuple[str, Any]]) -> None:
    """One key has one value; which of two was meant, nobody can tell."""
    first: dict[str, Any] = {}
    for key, value in given:
        if key in first:
            several = f"; several values are one list: {key}=[a,b]" if key in LISTS else ""
            raise SettingError(
                f"{command}: {key} is given twice, as {first[key]!r} and as {value!r}",
                fix=f"leave one of them out{several}",
            )
        first[key] = value


def _parse(command: str, argument: str) -> tuple[str, Any]:
    """Key and value of one argument."""
    key, equals, text = argument.partition("=")
    if not equals or not key:
        raise SettingError(
            f"{argument!r} is not of the form key=value",
            fix=f"torchcell-cache {command} --help lists the keys",
        )
    _refuse_targets(argument)
    if key.startswith(("+", "~")) or "@" in key or key.split(".")[0] == "hydra":
        raise SettingError(
            f"{argument!r}: keys cannot be added or removed", fix=f"torchcell-cache {command} --help"
        )
    is_text = key not in INTEGERS | NUMBERS | BOOLEANS | LISTS | MAPPINGS
    if key in _NAME_LISTS and text not in ("null", "???"):
        names = names_of(text)
        if names is None:
            raise SettingError(
                f"{argument!r} is no list of names",
                fix=f"write a list as {key}=[a,b], a name that holds a comma, bracket or quote as {key}='[\"a,b\"]'",
            )
        _refuse_targets(names)
        return key, names
    if is_text and text not in ("null", "???"):
        argument = (
            f"{key}={_quoted(text)}"  # paths may hold anything: =, #, brackets, every script of the world
        )
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException as error:
        raise SettingError(
            f"{argument!r} cannot be read: {str(error).splitlines()[0]}", fix="quote the value"
        ) from None
    if override.type is not OverrideType.CHANGE or override.is_sweep_override():
        raise SettingError(f"{argument!r} gives several values", fix=f"write a list as {key}=[a,b]")
    value = override.value()
    _refuse_targets(value)
    return key, value


def _quoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text
    body = text[: len(text.rstrip("\\"))]
    tail = text[len(body) :]
    return "'" + body.replace("\\'", "\\\\'").replace("'", "\\'") + 2 * tail + "'"


def _read_config(path: Path) -> Iterator[tuple[str, Any]]:
    if not path.is_file():
        raise SettingError(f"config={path}: no such file", path=path, fix="check the path")
    try:
        document = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # of the file system, of YAML or of OmegaConf: all say the same to the user
        raise SettingError(f"config={path} is not YAML: {error}", path=path) from None
    if not isinstance(document, dict):
        raise SettingError(f"config={path} must hold keys and values", path=path)
    _refuse_targets(document)
    yield from _flat(document, "")


def _flat(node: dict[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in MAPPINGS:
            yield from _flat(value, f"{key}.")
        else:
            yield key, value


def _refuse_targets(value: Any) -> None:
    """Raise if ``_target_`` stands anywhere inside."""
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_targets(str(key))
            _refuse_targets(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_targets(item)
    elif isinstance(value, str) and _EXECUTES in value:
        raise UnsafeContentError(
            f"{value[:80]!r} holds {_EXECUTES}: classes come from a fixed list, never from a config",
            fix="choose source= and processor=, see torchcell-cache preprocess --help",
        )


def _choices(command: str, pairs: dict[str, Any]) -> dict[str, str]:
    if command not in WITH_GROUPS:
        return {}
    defaults = {"source": "none", "processor": "lazy" if command == "preprocess" else "none"}
    chosen = {group: str(pairs.get(group, default)) for group, default in defaults.items()}
    for group, name in chosen.items():
        if name not in GROUPS[group]:
            raise SettingError(f"{group}={name!r} is unknown{suggestion(name, GROUPS[group])}")
    if command == "preprocess" and chosen["source"] == "none":
        names = ", ".join(name for name in GROUPS["source"] if name != "none")
        raise SettingError("source= is missing: what is to be preprocessed?", fix=f"source= one of {names}")
    return chosen


def _composed(command: str, choices: dict[str, str]) -> Any:
    with initialize_config_module("torchcell_cache.cli.conf", version_base="1.3"):
        config = compose(command, overrides=[f"{group}={name}" for group, name in choices.items()])
    OmegaConf.set_struct(config, False)
    return config


def _keys(config: Any, prefix: str = "") -> list[str]:
    out = []
    for name in config:
        key = f"{prefix}{name}"
        is_value = OmegaConf.is_missing(config, name) or OmegaConf.is_interpolation(config, name)
        node = None if is_value else config[name]
        if OmegaConf.is_dict(node) and key not in MAPPINGS:
            out += _keys(node, f"{key}.")
        else:
            out.append(key)
    return out


def _checked(key: str, value: Any, default: Any) -> Any:
    """``value`` if it is of the key's kind."""
    if isinstance(value, str) and "${" in value:
        return value  # checked once it is resolved
    if value is None and (default is None or key in ("source.id_column",)):
        return None
    kind = _kind(key)
    if key in LISTS and not isinstance(value, list):
        value = [value]
    if key in _NAME_LISTS:  # YAML takes a column named 2024 for a number
        value = [str(item) if type(item) is int else item for item in value]
    elif kind is str and type(value) is int:
        value = str(value)
    item_kind = int if key in INTEGER_LISTS else float if key in NUMBER_LISTS else str
    if not _is_of(value, kind) or (key in LISTS and not all(_is_of(item, item_kind) for item in value)):
        names = {
            int: "a whole number",
            float: "a number",
            bool: "true or false",
            list: {int: "a list of whole numbers", float: "a list of numbers"}.get(
                item_kind, "a list of names"
            ),
            dict: "a mapping",
            str: "text",
        }
        raise SettingError(f"{key}={value!r} is not {names[kind]}")
    if key in CHOICES and value not in CHOICES[key]:
        raise SettingError(f"{key}={value!r} is unknown{suggestion(value, CHOICES[key])}")
    return value


def _is_of(value: Any, kind: type) -> bool:
    if isinstance(value, bool):  # which Python takes for an integer
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def _kind(key: str) -> type:
    for names, kind in ((INTEGERS, int), (NUMBERS, float), (BOOLEANS, bool), (LISTS, list), (MAPPINGS, dict)):
        if key in names:
            return kind
    return str


def _resolved(command: str, config: Any) -> dict[str, Any]:
    missing = [key for key in _keys(config) if OmegaConf.is_missing(config, key) or _is_missing(config, key)]
    if missing:
        raise SettingError(
            f"{command} needs {', '.join(f'{key}=...' for key in missing)}",
            fix=f"torchcell-cache {command} --help",
        )
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise SettingError(f"a setting cannot be resolved: {str(error).splitlines()[0]}") from None
    _refuse_targets(values)
    assert isinstance(values, dict)
    for key, value in _flat(values, ""):
        if not isinstance(value, dict) or key in MAPPINGS:
            _checked(key, value, None)
    return {str(key): value for key, value in values.items()}


def _is_missing(config: Any, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return bool(OmegaConf.is_missing(node, name))

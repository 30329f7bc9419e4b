"""From ``key=value`` to checked settings. The only file that imports Hydra.

Hydra parses values and OmegaConf fills in ``${...}``; nothing is ever instantiated from them. What a setting may be follows from
the signature of what is called (:mod:`.registry`), and a ``_target_`` anywhere - in an override, a config file, an interpolation
- is refused before it could mean anything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torchcell_cache.cli.registry import GROUPS, keys_of, keys_of_choice
from torchcell_cache.cli.signatures import REQUIRED, Key
from torchcell_cache.cli.words import names_of
from torchcell_cache.core.checks import suggestion
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import SettingError, UnsafeContentError

_EXECUTES = "_target_"
_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a mapping",
    str: "text",
    (list, int): "a list of whole numbers",
    (list, float): "a list of numbers",
    (list, str): "a list of names",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Checked settings of one command.

    Attributes:
        command: Its name.
        values: Settings by key, plain values.
        choices: What was chosen for ``source`` and ``processor``; ``settings["source"]`` are the keys of that.
    """

    command: str
    values: dict[str, Any]
    choices: dict[str, str]

    def __getitem__(self, key: str) -> Any:
        if key not in self.choices:
            return self.values[key]
        parts = [(name.partition("."), value) for name, value in self.values.items()]
        return {name: value for (group, dot, name), value in parts if dot and group == key}


def read_settings(command: str, arguments: list[str]) -> Settings:
    """Parse and check the arguments of a command.

    Raises:
        SettingError: An unknown key, a misspelt choice, a value of another type, a key that is missing; the message
            names the valid ones.
        UnsafeContentError: A ``_target_``, or code named in a config file.
    """
    keys = keys_of(command)
    texts = _split(command, arguments, keys)
    path = _text("config", texts.get("config", "null"))
    recipe = {} if path == "null" else _read_config(existing_path("config", path))
    choices: dict[str, str] = {}
    for group in [group for group in GROUPS if group in keys]:
        said = _text(group, texts[group]) if group in texts else recipe.get(group)
        name = keys[group].default if said is None or isinstance(said, dict) else said
        if name in (REQUIRED, "none") and name not in keys[group].choices:
            fix = f"{group}= one of {', '.join(keys[group].choices)}"
            raise SettingError(f"{command} needs a {group}: {group}= is missing", fix=fix)
        choices[group] = _checked(group, name, keys[group])
        keys |= keys_of_choice(group, choices[group])
    values = {key: spec.default for key, spec in keys.items() if key not in choices}
    for key, value in {**dict(_flat(recipe, keys)), **texts}.items():
        if key not in keys:
            raise _no_key(command, key, keys, choices)
        if key not in choices:
            values[key] = _parsed(key, value, keys[key]) if key in texts else value
    missing = [f"{key}=..." for key, value in values.items() if value == REQUIRED]
    values = {key: _checked(key, value, keys[key]) for key, value in _resolved(values).items()}
    if missing:
        raise SettingError(f"{command} needs {', '.join(missing)}", fix=_help(command, choices))
    return Settings(command, values, choices)


def _split(command: str, arguments: Iterable[str], keys: Mapping[str, Key]) -> dict[str, str]:
    """Texts by key, each given once: which of two was meant, nobody can tell."""
    texts: dict[str, str] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            dashes = f"{argument.lstrip('-')}=..., without dashes; " * argument.startswith("-")
            fix = f"{dashes}torchcell-cache {command} --help lists the keys"
            raise SettingError(f"{argument!r} is not of the form key=value", fix=fix)
        _refuse_targets(argument)
        if key.startswith(("+", "~")) or "@" in key or key.split(".")[0] == "hydra":
            raise SettingError(f"{argument!r}: keys cannot be added or removed", fix=_help(command, {}))
        if key in texts:
            several = f", or write a list: {key}=[a,b]" * (key not in keys or keys[key].kind is list)
            text = f"{command}: {key} is given twice, as {texts[key]!r} and as {text!r}"
            raise SettingError(text, fix=f"leave one of them out{several}")
        if "." not in key and key not in keys:  # said before that something is missing
            raise _no_key(command, key, keys, {})
        texts[key] = text
    return texts


def _no_key(command: str, key: str, valid: Collection[str], choices: Mapping[str, str]) -> SettingError:
    names = [(group, name) for group in GROUPS.keys() & keys_of(command).keys() for name in GROUPS[group]]
    inside = {longer.partition(".")[2]: longer for each in names for longer in keys_of_choice(*each)}
    inside |= dict.fromkeys(valid, "")  # the command's own key is meant where both have the name
    longer = "".join(inside[name] for name in get_close_matches(key, inside, n=1, cutoff=0.7))
    near = f"; did you mean {longer!r}?" if longer else suggestion(key, valid)
    return SettingError(f"{command} has no key {key!r}{near}", fix=_help(command, choices))


def _help(command: str, choices: Mapping[str, str]) -> str:
    """The command that says which keys there are, of what was chosen too."""
    chosen = "".join(f" {group}={name}" for group, name in choices.items() if name != "none")
    return f"torchcell-cache {command}{chosen} --help"


def _read_config(path: Path) -> dict[Any, Any]:
    from omegaconf import OmegaConf

    try:
        document = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # of the file system, of YAML or of OmegaConf: all say the same to the user
        raise SettingError(f"config={path} is not YAML: {error}", path=path) from None
    if not isinstance(document, dict):
        raise SettingError(f"config={path} must hold keys and values", path=path)
    _refuse_targets(document)
    for group in GROUPS:
        if document.get(group) == "python":
            raise UnsafeContentError(
                f"{path} says {group}: python; code that is executed can only be named on the command line",
                path=str(path),
                fix=f"add {group}=python {group}.file=... to the command",
            )
    return document


def existing_path(key: str, value: str) -> Path:
    """The file a setting names; the error names what is there instead."""
    path = local_path(value, key)
    if path.is_file():
        return path
    if path.is_dir():
        raise SettingError(f"{key}={value} is a directory, expected a file", path=path)
    if not path.parent.is_dir():
        raise SettingError(f"{key}={value}: there is no directory {path.parent}", path=path)
    names = sorted(p.name for p in path.parent.iterdir() if p.is_file() and p.suffix == path.suffix)[:20]
    near = suggestion(path.name, names) if names else ""
    raise SettingError(f"{key}={value}: no such file{near}", path=path)


def _refuse_targets(value: Any) -> None:
    """Raise if ``_target_`` stands anywhere inside."""
    said = repr(value)
    at = said.find(_EXECUTES)
    if at >= 0:
        raise UnsafeContentError(
            f"{said[max(at - 30, 0) : at + 50]} holds {_EXECUTES}: classes come from a fixed list, never from a config",
            fix="choose source= and processor=, see torchcell-cache preprocess --help",
        )


def _flat(node: Mapping[Any, Any], keys: Mapping[str, Key], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and not (key in keys and keys[key].kind is dict):
            yield from _flat(value, keys, f"{key}.")
        else:
            yield key, value


def _parsed(key: str, text: str, spec: Key) -> Any:
    """What the text of a key says."""
    if text in ("null", REQUIRED):
        return None if text == "null" else text
    if spec.kind is str:
        return _text(key, text)
    if spec.kind is not list or spec.item is not str:
        return _by_hydra(key, text)
    names = names_of(text)
    if names is None:
        raise SettingError(
            f"'{key}={text}' is no list of names",
            fix=f"write a list as {key}=[a,b], a name that holds a comma, bracket or quote as {key}='[\"a,b\"]'",
        )
    return names


def _text(key: str, text: str) -> Any:
    """Paths may hold anything: =, #, brackets, every script of the world; only quotes around all of it mean something."""
    return _by_hydra(key, text) if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _by_hydra(key: str, text: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException

    argument = f"{key}={text}"
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException as error:
        raise SettingError(
            f"{argument!r} cannot be read: {str(error).splitlines()[0]}", fix="quote the value"
        ) from None
    if override.type is not OverrideType.CHANGE or override.is_sweep_override():
        raise SettingError(f"{argument!r} gives several values", fix=f"write a list as {key}=[a,b]")
    return override.value()


def _resolved(values: dict[str, Any]) -> dict[str, Any]:
    """The values, ``${...}`` filled in."""
    if "${" in repr(values):  # importing it takes longer than many a command
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        tree = OmegaConf.create()
        try:
            for key, value in values.items():
                OmegaConf.update(tree, key, value, force_add=True)
            plain: Any = OmegaConf.to_container(tree, resolve=True)
        except OmegaConfBaseException as error:
            raise SettingError(f"a setting cannot be resolved: {str(error).splitlines()[0]}") from None
        names = [(key, key.rpartition(".")) for key in values]
        values = {key: (plain[group] if group else plain)[name] for key, (group, _, name) in names}
    _refuse_targets(values)
    return values


def _checked(key: str, value: Any, spec: Key) -> Any:
    """``value`` if it is of the key's kind."""
    if (value is None and spec.default is None) or value == REQUIRED:
        return value
    if spec.kind is list:
        value = value if isinstance(value, list) else [value]
        if spec.item is str:  # YAML takes a column named 2024 for a number
            value = [str(item) if type(item) is int else item for item in value]
    elif spec.kind is str and type(value) is int:
        value = str(value)
    if not _is_of(value, spec.kind) or (spec.kind is list and not all(_is_of(v, spec.item) for v in value)):
        kind: Any = (list, spec.item) if spec.kind is list else spec.kind
        raise SettingError(f"{key}={'null' if value is None else repr(value)} is not {_KINDS[kind]}")
    if spec.choices and value not in spec.choices:
        raise SettingError(f"{key}={value!r} is unknown{suggestion(value, spec.choices)}")
    return value


def _is_of(value: Any, kind: type) -> bool:
    if isinstance(value, bool):  # which Python takes for an integer
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)

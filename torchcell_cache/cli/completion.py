"""Completion in bash and zsh: the shell asks the program itself, which knows its keys from signatures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torchcell_cache.cli.registry import COMMANDS, GROUPS, POSITIONAL, choices_of, keys_of, keys_of_choice

_SHELLS = {
    # bash splits words at = and :, so the line is split anew, and what it has split off is not given twice. It puts in
    # what it is given, so names that hold blanks or quotes are escaped here; zsh does both by itself.
    "bash": """\
_torchcell_cache() {
  local line="${COMP_LINE:0:COMP_POINT}" word candidate
  local -a words
  read -a words <<<"$line"
  [[ "$line" == *[^\\\\][[:space:]] ]] && words+=("")
  word="${words[-1]}"
  COMPREPLY=()
  while IFS= read -r candidate; do
    [[ "$word" == *=* ]] && candidate="${candidate#*=}"
    [[ "$candidate" == *[^[:alnum:]_./~=:@%+,-]* ]] && printf -v candidate %q "$candidate"
    COMPREPLY+=("$candidate")
  done < <("${words[0]}" --complete "${words[@]:1}" 2>/dev/null)
  [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *[=/] ]] && compopt -o nospace
  return 0
}
complete -F _torchcell_cache torchcell-cache
""",
    "zsh": """\
#compdef torchcell-cache
_torchcell_cache() {
  local -a found open
  found=(${(f)"$("${words[1]}" --complete "${(@Q)words[2,CURRENT]}" 2>/dev/null)"})
  open=("${(@M)found:#*[=/]}")
  found=("${(@)found:#*[=/]}")
  (( ${#open} )) && compadd -S '' -- "${(@)open}"
  (( ${#found} )) && compadd -- "${(@)found}"
}
compdef _torchcell_cache torchcell-cache
""",
}


def completion(shell: str) -> None:
    """Print what makes bash or zsh complete commands, keys, choices and paths.

    Args:
        shell: bash or zsh.

    Example:
        eval "$(torchcell-cache completion bash)"      # in ~/.bashrc
        eval "$(torchcell-cache completion zsh)"       # in ~/.zshrc, after compinit
    """
    print(_SHELLS[shell], end="")


def candidates(words: Sequence[str]) -> Iterator[str]:
    """What the last of the words behind the program's name may become."""
    *before, word = words or [""]
    if not before:
        yield from (name for name in [*COMMANDS, "help"] if name.startswith(word))
        return
    command, given = before[0], {w.partition("=")[0]: w.partition("=")[2] for w in before[1:]}
    if command not in COMMANDS:
        yield from (name for name in COMMANDS if command == "help" and name.startswith(word))
        return
    keys = keys_of(command)
    for group in GROUPS.keys() & keys.keys():
        if given.get(group) in GROUPS[group]:
            keys |= keys_of_choice(group, given[group])
    key, equals, text = word.partition("=")
    if equals:
        spec = keys.get(key)
        values = [*GROUPS.get(key, choices_of(key))]
        if spec is not None and spec.kind is bool:
            values = ["true", "false"]
        elif spec is not None and not values and spec.kind in (str, list):
            values = [*_paths(text)]
        yield from (f"{key}={value}" for value in values if value.startswith(text))
        return
    place = len(before) - 1
    positional = POSITIONAL.get(command, ("root",))
    named = positional[place] if place < len(positional) and positional[place] in keys else None
    if named is not None and not given.keys() & keys.keys():
        valid = choices_of(named)
        yield from (v for v in valid or _paths(word) if v.startswith(word))
    yield from (f"{name}=" for name in keys if name.startswith(word) and name not in given)


def _paths(text: str) -> Iterator[str]:
    folder, _, start = text.rpartition("/")
    base = Path(f"{folder}/" if "/" in text else ".").expanduser()
    try:
        found = sorted(base.iterdir())
    except OSError:
        return
    prefix = f"{folder}/" if "/" in text else ""
    for path in found:
        if path.name.startswith(start) and (start.startswith(".") or not path.name.startswith(".")):
            yield f"{prefix}{path.name}{'/' if path.is_dir() else ''}"

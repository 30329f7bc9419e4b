"""Completion in bash and zsh: the shell asks the program itself, which knows its keys from signatures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torchcell_cache.cli.registry import COMMANDS, GROUPS, POSITIONAL, keys_of, keys_of_choice
from torchcell_cache.cli.signatures import Key
from torchcell_cache.core.choices import Shell

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


def completion(shell: Shell) -> None:
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
    command, given = before[0] if before else "", dict(w.partition("=")[::2] for w in before[1:])
    if command not in COMMANDS:
        names = [*COMMANDS, "help"] if not before else COMMANDS if command == "help" else ()
        yield from (name for name in names if name.startswith(word))
        return
    keys = keys_of(command)
    for group in GROUPS.keys() & keys.keys():
        if given.get(group) in GROUPS[group]:
            keys |= keys_of_choice(group, given[group])
    key, equals, text = word.partition("=")
    if equals:
        if key in keys:
            yield from (f"{key}={value}" for value in _values(keys[key], text))
        return
    place, positional = len(before) - 1, POSITIONAL.get(command, ("root",))
    if positional[place:] and positional[place] in keys and not given.keys() & keys.keys():
        yield from _values(keys[positional[place]], word)
    yield from (f"{name}=" for name in keys if name.startswith(word) and name not in given)


def _values(spec: Key, text: str) -> Iterator[str]:
    """What a value that begins so may be: one of the valid ones, or a path."""
    values = ("true", "false") if spec.kind is bool else spec.choices
    yield from (value for value in values if value.startswith(text))
    if values or spec.kind not in (str, list):
        return
    folder, slash, start = text.rpartition("/")
    try:
        found = sorted(Path(f"{folder}/" if slash else ".").expanduser().iterdir())
    except OSError:
        return
    for path in found:
        if path.name.startswith(start) and (start.startswith(".") or not path.name.startswith(".")):
            yield f"{folder}{slash}{path.name}{'/' if path.is_dir() else ''}"

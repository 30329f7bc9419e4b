"""The command line: ``torchcell-cache <command> key=value ...``.

This module decides which command runs and what its errors look like. It imports nothing heavy, so that ``--help`` answers
at once; Hydra is imported in :mod:`.settings` only, torch by the commands that need it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from torchcell_cache.cli.registry import COMMANDS
from torchcell_cache.core.package import __version__, platform_lacks
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import (
    EXIT_CANNOT_WRITE,
    EXIT_CORRUPT_OR_STALE,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USAGE,
    BuildInterruptedError,
    CacheError,
    CacheNotFoundError,
    SettingError,
)

_WRITERS = (
    "stage",
    "push",
    "pull",
    "preprocess",
    "import-torchcell",
    "append",
    "update",
    "select",
    "split",
    "repair",
    "gc",
)
EXIT_BUG = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: Arguments after the program's name; those of the process if ``None``.

    Returns:
        The exit code: 0 fine, 2 usage, 65 corrupt or stale, 73 cannot write, 75 interrupted and resumable.
    """
    if (lacks := platform_lacks()) is not None:
        _say(f"error: {lacks}")
        return EXIT_USAGE
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "debug=true" in (argument.lower() for argument in arguments)
    # PyG compiles a class with torch.jit when it is imported; no user of a command can do anything about it.
    warnings.filterwarnings("ignore", ".torch.jit.", FutureWarning)
    keys: set[str] = set()
    try:
        with _terminating():
            return _dispatch(arguments, keys)
    except BrokenPipeError:  # the reader of our output (head, less) has enough
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except KeyboardInterrupt:
        return _interrupted(arguments)
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _failed(error, arguments, keys)


def _dispatch(arguments: list[str], keys: set[str]) -> int:
    from torchcell_cache.cli.registry import command_help, overview, with_names

    if arguments[:1] == ["--complete"]:
        from torchcell_cache.cli.completion import candidates

        print(*candidates(arguments[1:]), sep="\n")
        return EXIT_OK
    wants_help = any(a in ("-h", "--help") for a in arguments)
    if arguments[:1] == ["help"] and len(arguments) > 1:
        arguments, wants_help = arguments[1:], True
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        wanted = next((a for a in arguments[1:] if a in COMMANDS), None)
        print(overview() if wanted is None else command_help(wanted))
        return EXIT_OK if arguments else EXIT_USAGE
    if arguments[0] in ("-V", "--version"):
        print(f"torchcell-cache {__version__}")
        return EXIT_OK
    name = arguments[0]
    if name not in COMMANDS:
        from torchcell_cache.core.checks import suggestion

        raise SettingError(
            f"unknown command {name!r}{suggestion(name, COMMANDS)}", fix="torchcell-cache --help"
        )
    if wants_help:
        print(command_help(name, arguments[1:]))
        return EXIT_OK
    arguments[:] = with_names(arguments)
    from torchcell_cache.cli.registry import run
    from torchcell_cache.cli.settings import read_settings

    settings = read_settings(name, arguments[1:])
    keys |= settings.keys
    if name != "stage" and "root" in settings.values:
        local_path(settings["root"])  # also where Python could open an address
    return run(settings)


@contextlib.contextmanager
def _terminating() -> Iterator[None]:
    """SIGTERM ends the program as Ctrl-C does, also before and after the build listens to it."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(text: str) -> None:
    from torchcell_cache.cli.words import painted

    with contextlib.suppress(BrokenPipeError):
        print(painted(text, sys.stderr), file=sys.stderr, flush=True)


def _again(arguments: list[str]) -> str:
    return f"torchcell-cache {shlex.join(arguments)}"


def _interrupted(arguments: list[str]) -> int:
    _say(f"\ninterrupted; nothing is lost\n  to continue: {_again(arguments)}")
    return EXIT_INTERRUPTED


def _failed(error: Exception, arguments: list[str], keys: set[str]) -> int:
    """Print an error as message and fix; the traceback is for ``debug=true``."""
    if isinstance(error, BuildInterruptedError):
        _say(f"{str(error).splitlines()[0]}\n  to continue: {_again(arguments)}")
        return error.code
    if isinstance(error, CacheError):
        _say(f"error: {_in_shell(error, keys)}{_stores_nearby(error, arguments)}")
        return error.code
    if isinstance(error, OSError):
        _say(f"error: {error}")
        return EXIT_CANNOT_WRITE if arguments[:1] and arguments[0] in _WRITERS else EXIT_CORRUPT_OR_STALE
    _say(
        f"error: {type(error).__name__}: {error}\n"
        f"  fix: this should not happen; run it with debug=true for the traceback: {_again([*arguments, 'debug=true'])}"
    )
    return EXIT_BUG


def _in_shell(error: CacheError, keys: set[str]) -> str:
    """The error's text, its fix in the words of the command line."""
    from torchcell_cache.cli.words import for_shell

    said, mark, fix = str(error).rpartition("fix: ")
    return said + mark + for_shell(fix, keys) if mark else fix


def _stores_nearby(error: CacheError, arguments: list[str]) -> str:
    """Stores beside a root that has none: a mistyped path is the usual reason."""
    root = next((a.partition("=")[2] for a in reversed(arguments) if a.startswith("root=")), None)
    if not isinstance(error, CacheNotFoundError) or root is None:
        return ""
    parent = local_path(root).parent
    if (local_path(root) / "processed" / "manifest.json").is_file():  # what is missing is something else
        return ""
    found = (
        sorted(p.parents[1].name for p in parent.glob("*/processed/manifest.json")) if parent.is_dir() else []
    )
    return f"\n  stores in {parent}: {', '.join(found[:20])}" if found else ""

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

from torchcell_cache import errors
from torchcell_cache.cli.registry import COMMANDS, command_help, overview, run, with_names
from torchcell_cache.cli.words import for_shell, painted
from torchcell_cache.core.package import __version__, platform_lacks
from torchcell_cache.core.urls import local_path

_READERS = ("info", "verify", "status", "bench", "init", "completion")
_HELP = ("help", "-h", "--help")
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
        return errors.EXIT_USAGE
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
        return errors.EXIT_OK
    except KeyboardInterrupt:
        _say(f"\ninterrupted; nothing is lost\n  to continue: torchcell-cache {shlex.join(arguments)}")
        return errors.EXIT_INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _failed(error, arguments, keys)


def _dispatch(arguments: list[str], keys: set[str]) -> int:
    if arguments[:1] == ["--complete"]:
        from torchcell_cache.cli.completion import candidates

        print(*candidates(arguments[1:]), sep="\n")
        return errors.EXIT_OK
    if arguments and arguments[0] in _HELP:
        arguments = [*(word for word in arguments if word not in _HELP), "--help"]
    if not arguments or arguments == ["--help"]:
        print(overview())
        return errors.EXIT_OK if arguments else errors.EXIT_USAGE
    name = arguments[0]
    if name in ("-V", "--version"):
        print(f"torchcell-cache {__version__}")
        return errors.EXIT_OK
    if name not in COMMANDS:
        from torchcell_cache.core.checks import suggestion

        near = suggestion(name, COMMANDS)
        raise errors.SettingError(f"unknown command {name!r}{near}", fix="torchcell-cache --help")
    if {"-h", "--help"} & {*arguments}:
        print(command_help(name, arguments[1:]))
        return errors.EXIT_OK
    from torchcell_cache.cli.settings import read_settings

    arguments[:] = with_names(arguments)
    settings = read_settings(name, arguments[1:])
    keys |= settings.values.keys() | settings.choices.keys()
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
    with contextlib.suppress(BrokenPipeError):
        print(painted(text, sys.stderr), file=sys.stderr, flush=True)


def _failed(error: Exception, arguments: list[str], keys: set[str]) -> int:
    """Print an error as message and fix; the traceback is for ``debug=true``."""
    again = f"torchcell-cache {shlex.join(arguments)}"
    if isinstance(error, errors.BuildInterruptedError):
        _say(f"{str(error).splitlines()[0]}\n  to continue: {again}")
        return error.code
    if isinstance(error, errors.CacheError):
        said, mark, fix = str(error).rpartition("fix: ")
        fix = for_shell(fix, keys) if mark else fix
        _say(f"error: {said}{mark}{fix}{_stores_nearby(error, arguments)}")
        return error.code
    if isinstance(error, OSError):
        _say(f"error: {error}")
        reads = arguments and arguments[0] in _READERS
        return errors.EXIT_CORRUPT_OR_STALE if reads else errors.EXIT_CANNOT_WRITE
    _say(
        f"error: {type(error).__name__}: {error}\n"
        f"  fix: this should not happen; run it with debug=true for the traceback: {again} debug=true"
    )
    return EXIT_BUG


def _stores_nearby(error: errors.CacheError, arguments: list[str]) -> str:
    """Stores beside a root that has none: a mistyped path is the usual reason."""
    root = next((a.partition("=")[2] for a in reversed(arguments) if a.startswith("root=")), None)
    if not isinstance(error, errors.CacheNotFoundError) or root is None:
        return ""
    place = local_path(root)
    if (place / "processed" / "manifest.json").is_file():  # what is missing is something else
        return ""
    found = sorted(path.parents[1].name for path in place.parent.glob("*/processed/manifest.json"))
    return f"\n  stores in {place.parent}: {', '.join(found[:20])}" if found else ""

"""What every program does: read options from a file and the command line, fail in one line."""

from __future__ import annotations

import difflib
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser

from pinmem.arguments import spelt_out

Options = TypeVar("Options")

SHARED_MEMORY_REMEDY = "--workers 0 does without, docker run --shm-size makes it larger"


def parse(
    options: type[Options],
    arguments: Sequence[str] | None = None,
    program: str | None = None,
    epilog: str | None = None,
) -> Options:
    """Read options from ``--config file.yaml`` and ``--option value``, the later one winning.

    A misspelt option or key, or a value of the wrong type, ends the program with one line.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    description = (options.__doc__ or "").splitlines()[0]
    parser = _Parser(prog=program, description=description, epilog=epilog)
    parser.known = [f.name for f in fields(options)]  # type: ignore[arg-type]
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of options")
    parser.add_class_arguments(options, as_group=False)
    parser.check_spelling(arguments)
    arguments = spelt_out(arguments, get_type_hints(options))
    parsed = parser.parse_args(arguments)
    parsed.pop("config", None)
    return options(**parsed.as_dict())


class _Parser(ArgumentParser):
    """jsonargparse with one-line errors that name the nearest right option."""

    known: list[str]

    def error(self, message: str, ex: Exception | None = None) -> Any:  # type: ignore[override]
        line = " ".join(str(message).split())
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(2)

    def check_spelling(self, arguments: Sequence[str]) -> None:
        """Find options and configuration keys that do not exist, and configurations that do not."""
        for i, argument in enumerate(arguments):
            if not argument.startswith("--"):
                continue
            name, _, value = argument[2:].partition("=")
            if name == "config":
                path = value or (arguments[i + 1] if i + 1 < len(arguments) else "")
                self._check_file(path)
            elif name.rstrip("+") not in (*self.known, "help", "print_config"):
                self.error(f"option --{name}: {self._nearest(name)}")

    def _check_file(self, path: str) -> None:
        try:
            content = yaml.safe_load(Path(path).read_text())
        except OSError as error:
            self.error(f"config {path}: {error.strerror}")
        except yaml.YAMLError as error:
            self.error(f"config {path}: not YAML: {error}")
        if not isinstance(content, dict):
            self.error(f"config {path}: got {type(content).__name__}, expected options: values")
        for key in content:
            if key not in self.known:
                self.error(f"config {path}: key {key!r}: {self._nearest(str(key))}")

    def _nearest(self, name: str) -> str:
        close = difflib.get_close_matches(name, self.known, n=1, cutoff=0.5)
        return f"no such option; did you mean {close[0]!r}?" if close else "no such option"


def run(main: Callable[[], None]) -> None:
    """Call a program's ``main``; an expected error becomes one line and an exit status.

    The status is 1 where a number is not finite, 2 where options or files do not fit, 130 after
    Ctrl-C and 143 after SIGTERM.
    """
    try:
        main()
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except (ValueError, OSError, RuntimeError) as error:
        text = str(error)
        if text.startswith("Caught "):  # in a process that loads data: the traceback's last line
            text = text.rstrip().rpartition("\n")[2].partition(": ")[2]
        if isinstance(error, RuntimeError):
            if not _of_shared_memory(text):
                raise
            text = f"workers: no room in /dev/shm for what they load; {SHARED_MEMORY_REMEDY}"
        print(f"error: {' '.join(text.split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as error:
        print(str(error) or "stopped", file=sys.stderr)
        raise SystemExit(128 + getattr(error, "signal", signal.SIGINT)) from None


def _of_shared_memory(text: str) -> bool:
    """Whether a loader's message is about the memory it shares with its processes."""
    full = "No space left" in text and "torch_" in text
    return full or "Bus error" in text or "shared memory" in text

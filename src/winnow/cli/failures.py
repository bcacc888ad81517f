"""Failures: every error becomes one line on standard error and one exit code.   (floor 8 · cli)"""

import contextlib
import errno
import io
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TextIO

from winnow.base.errors import WinnowError

USAGE, MODEL, RESOURCE, INTERRUPTED = 2, 3, 4, 130
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EMFILE)


def open_streams() -> None:
    """Let printing always succeed: a closed stream swallows, a terminal without UTF-8 shows "?"."""
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (it stays open as long as the process)
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def report(error: BaseException, *, debug: bool) -> int:
    """Print what went wrong in one line, after the traceback if `debug`, and return the exit code.

    A closed reader (``winnow ... | head``) is no failure: nothing is printed.
    """
    if isinstance(error, BrokenPipeError):
        _abandon_stdout()
        return 0
    if debug:
        traceback.print_exception(error)
    message, code = _verdict(error)
    if code == INTERRUPTED and sys.stderr.isatty():
        print(file=sys.stderr)  # the terminal has just echoed ^C
    say(message)
    return code


def leave_in_peace() -> None:
    """Let a further Ctrl-C pass unheard: the process is on its way out and has said why."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def say(message: str) -> None:
    """Print one line for people on standard error, whatever `message` holds."""
    print(f"winnow: {one_line(message)}", file=sys.stderr, flush=True)


def one_line(text: str) -> str:
    """Return `text` with line breaks and control characters made visible or harmless."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in " ".join(text.split()))


def warn_in_one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning as `say` would, in the place of ``warnings.showwarning``."""
    say(f"warning: {message}")


def _verdict(error: BaseException) -> tuple[str, int]:
    match error:
        case WinnowError():
            return str(error), error.exit_code
        case KeyboardInterrupt():
            return "interrupted", INTERRUPTED
        case MemoryError():
            return "out of memory; choose a smaller model or text, or --dtype bf16.", RESOURCE
        case ModuleNotFoundError() if error.name == "transformers":
            return "this needs the package transformers: pip install 'winnow-llm[hf]'", RESOURCE
        case OSError():
            return _system(error)
        case RuntimeError() if "allocate memory" in str(error):  # torch has no class of its own for this
            return "out of memory; choose a smaller model or text, or --dtype bf16.", RESOURCE
        case _:
            return f"internal error: {error!r}. Run again with --debug and report it.", 1


def _system(error: OSError) -> tuple[str, int]:
    reason = error.strerror or str(error)
    if error.errno in FULL:
        return f"{reason}: {error.filename or 'standard output'}. Make room and run again.", RESOURCE
    where = f": {error.filename}" if error.filename else ""
    return f"{reason}{where}. Check the path and its permissions.", MODEL


def _abandon_stdout() -> None:
    """Point standard output at nothing, so that Python's last flush does not fail in its turn."""
    with contextlib.suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)

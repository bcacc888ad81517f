"""The command line: wires rooms together, holds no logic.   (floor 8 · cli)

    version.py     which Winnow this is
    failures.py    every error becomes one line and one exit code
    line.py        one command line, read: the command, its words, its options
    values.py      what an option's text stands for
    model_options.py data_options.py audit_options.py   what commands take: about models, data, leaks
    parser.py      the commands
    show.py        tables, JSON objects, numbers as people read them
    opening.py     models, prompts and texts that the arguments name
    rivals.py      the engines of other projects beside Winnow's own
    generate.py    winnow generate
    calibrate.py   winnow calibrate
    fidelity.py    winnow fidelity
    perplexity.py  winnow perplexity
    bench.py       winnow bench
    inspect.py     winnow inspect
    chat.py        winnow chat
    convert.py     winnow convert
    doctor.py      winnow doctor
    search.py      winnow search
    train.py       winnow train
    two_layer.py solve.py   winnow solve
    audit_models.py audit_attention.py audit_timing.py audit.py   winnow audit

Each command is a function ``run(arguments) -> exit code`` in the file of its name, imported when it is
chosen: `winnow --help` imports neither torch nor numpy nor rich.
"""

import importlib
import sys
import warnings
from collections.abc import Sequence

from winnow.cli.failures import leave_in_peace, open_streams, report, warn_in_one_line
from winnow.cli.parser import read_command_line

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (left out: this process's) and return its exit code.

    0 ok, 2 usage, 3 bad or missing model or data file, 4 more than this machine has, 130 interrupted.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    open_streams()
    with warnings.catch_warnings():
        warnings.showwarning = warn_in_one_line
        try:
            arguments = read_command_line(words)
            code = importlib.import_module(f"winnow.cli.{arguments.command}").run(arguments)
            print(end="", flush=True)
        except SystemExit as end:  # --help and --version
            return int(end.code or 0)
        except BaseException as error:
            if argv is None:
                leave_in_peace()
            return report(error, debug="--debug" in words)
        return code

"""Errors: one tree, one line each, one exit code each.   (floor 0 · base)

    WinnowError
      x UsageError          2    the call or the command line is off
      x ModelError          3    a model or data file is missing or broken
      x ResourceError       4    the machine has too little of something

Every message says what was received, what was expected and what to do.
"""


class WinnowError(Exception):
    """Base of all errors that a user can mend; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(WinnowError, ValueError):
    """An argument is outside what the function accepts."""

    exit_code = 2


class ModelError(WinnowError):
    """A model directory, a plan or a text file is missing, broken or of an unsupported kind."""

    exit_code = 3


class ResourceError(WinnowError):
    """The machine lacks the memory, the disk space or the device that was asked for."""

    exit_code = 4

"""Version: which Winnow this is.   (floor 8 · cli)"""

import importlib.metadata


def version() -> str:
    """Return the installed version, or say that this is a source tree that nobody installed."""
    try:
        return importlib.metadata.version("winnow-llm")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"

"""Arrays: .npy files, read and written; nothing in a file is run.   (floor 0 · base)"""

from pathlib import Path

import numpy as np

from winnow.base.errors import ModelError
from winnow.base.files import replacing


def map_array(path: str | Path) -> np.ndarray:
    """Map a .npy file into memory, which may be the smaller of the two.

    Raises ModelError for what is no such file, FileNotFoundError for what is not there.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ModelError(
            f"{path} is no array in a .npy file ({error}); write one with numpy.save(path, array)."
        ) from None
    if not isinstance(array, np.ndarray):
        raise ModelError(f"{path} is an archive, expected a .npy file: save one array of it by numpy.save.")
    return array


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file, whole or not at all."""
    with replacing(path) as draft, draft.open("wb") as file:
        np.save(file, array, allow_pickle=False)

"""Files that stages keep. torch and numpy do not tell a full disk as such, so neither of them writes to the disk."""

import io
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray


def save(path: Path, state: object) -> None:
    """Write a torch file so that an interruption leaves either the old one or the new one. Raises OSError."""
    data = io.BytesIO()
    torch.save(state, data)
    part = path.with_suffix(".part")
    part.write_bytes(data.getbuffer())
    os.replace(part, path)


def save_array(path: Path, array: NDArray) -> None:
    """Write an .npy file. Raises OSError."""
    array = np.ascontiguousarray(array)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)

"""Files that stages keep: whole, or an error that says what is wrong with the disk."""

import errno
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from tools.demo_model.files import save, save_array


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save(path, {"step": 1})
    with pytest.raises((AttributeError, TypeError, RuntimeError, OSError)):
        save(path, {"step": lambda: None})
    assert torch.load(path, weights_only=True) == {"step": 1}


@pytest.mark.parametrize("shape", [(0,), (70_000,), (3, 4, 5)])
def test_numpy_reads_what_was_written(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    save_array(tmp_path / "array.npy", array)
    for mode in (None, "r"):
        if array.size or mode is None:  # nothing cannot be mapped
            np.testing.assert_array_equal(np.load(tmp_path / "array.npy", mmap_mode=mode), array)


def test_a_disk_that_takes_a_part_of_an_array_is_told_as_such(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            save_array(tmp_path / "array.npy", np.zeros(1_000_000, np.int16))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.errno == errno.EFBIG

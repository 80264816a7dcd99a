"""Programs that some tests run and Python packages do not bring."""

import ctypes.util
import os
import shutil
import subprocess
from collections.abc import Callable
from typing import TypeVar

import pytest

INSTALL_SECONDS = 300

Found = TypeVar("Found")


def require_program(name: str, debian_package: str) -> str:
    """The program's path; it is installed where that may be done, else the test is skipped (with `CI` set: failed)."""
    return _require(lambda: shutil.which(name), name, debian_package)


def require_library(name: str, debian_package: str) -> str:
    """The shared library's file name; as `require_program`."""
    return _require(lambda: ctypes.util.find_library(name), f"lib{name}", debian_package)


def find_program(name: str, debian_package: str) -> str | None:
    """The program's path; it is installed where that may be done, else there is none."""
    return _find(lambda: shutil.which(name), debian_package)


def _find(find: Callable[[], Found | None], debian_package: str) -> Found | None:
    if found := find():
        return found
    apt = shutil.which("apt-get")
    if apt and os.geteuid() == 0:
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", debian_package]):
            subprocess.run([apt, *command], check=False, capture_output=True, timeout=INSTALL_SECONDS)
    return find()


def _require(find: Callable[[], Found | None], name: str, debian_package: str) -> Found:
    if found := _find(find, debian_package):
        return found
    missing = f"needs {name}: install it first (Debian: apt-get install {debian_package})"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)

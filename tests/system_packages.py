"""Programs that some tests run and Python packages do not bring."""

import os
import shutil
import subprocess

import pytest


def require_program(name: str, debian_package: str) -> str:
    """The program's path; it is installed where that may be done, else the test is skipped (with `CI` set: failed)."""
    if path := shutil.which(name):
        return path
    apt = shutil.which("apt-get")
    if apt and os.geteuid() == 0:
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", debian_package]):
            subprocess.run([apt, *command], check=False, capture_output=True, timeout=100)
    if path := shutil.which(name):
        return path
    missing = f"needs {name}: install it first (Debian: apt-get install {debian_package})"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)

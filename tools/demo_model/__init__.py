"""Trains the demo model in `configs/models/demo` from nothing but espeak-ng and a seed, and measures it."""

from serve_app.openmp import wait_without_spinning

wait_without_spinning()

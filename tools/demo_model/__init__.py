"""Trains the demo model in `configs/models/demo` from nothing but espeak-ng and a seed, and measures it."""

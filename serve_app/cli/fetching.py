"""The checkpoints, fetched and checked before anything is started.

A wrong checkpoint then costs a second instead of a start of Ray, and a download shows its progress and has its time.
"""

from pathlib import Path

from serve_app.checkpoint.parts import CheckpointParts, read_parts
from serve_app.cli.config import Overrides
from serve_app.settings import Settings


def fetch_checkpoints(settings: Settings, overrides: Overrides) -> None:
    """Download each model's checkpoint where it is not local, and check it. Raises CheckpointError.

    On somebody else's cluster that is left to the engines, whose machines and folders are not ours.
    """
    for served in settings.served.values() if overrides.private else ():
        fetch_parts(served)


def fetch_parts(settings: Settings) -> CheckpointParts:
    """The model's checkpoint on this machine, downloaded where it is not local, and checked. Raises CheckpointError."""
    model, cache_dir = settings.model_settings, settings.engine.model_cache_dir
    return read_parts(str(model.checkpoint), Path(cache_dir) if cache_dir else None, model.audio_delay_frames)

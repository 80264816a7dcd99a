"""From settings to a model that is ready to step."""

import os
from pathlib import Path

import torch

from serve_app.engine.batcher import Model
from serve_app.model.checkpoint import load_checkpoint
from serve_app.model.model import SpeechModel
from serve_app.settings import Settings, SettingsError
from serve_app.telemetry import get_logger

_log = get_logger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(settings: Settings) -> Model:
    """Load the checkpoint the settings name, onto the device they name, and run it warm.

    Raises CheckpointError if the checkpoint is not what it should be, and SettingsError if the device is not there or
    cannot do what is asked of it.
    """
    device = choose_device(settings.engine.device)
    check_cache_dtype(settings.engine.kv_cache_dtype, device)
    wanted = settings.model_settings
    default_dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype = _DTYPES.get(wanted.dtype, default_dtype)
    if device.type == "cpu":
        # Ray sets OMP_NUM_THREADS from the CPUs a replica reserves, which are not what it may use.
        torch.set_num_threads(settings.engine.torch_threads or len(os.sched_getaffinity(0)))
    cache_dir = settings.engine.model_cache_dir
    checkpoint = load_checkpoint(
        str(wanted.checkpoint),
        device=device,
        dtype=dtype,
        cache_dir=Path(cache_dir) if cache_dir else None,
        audio_delay_frames=wanted.audio_delay_frames,
    )
    model = SpeechModel(checkpoint, settings.engine.slots, kv_cache_dtype=settings.engine.kv_cache_dtype)
    model.warm_up()
    if not model.info.pause_heads:
        _log.warning("checkpoint has no pause heads: no turn ends will be sent", model=settings.model)
    _log.info("model loaded", model=settings.model, device=str(device), dtype=str(dtype), slots=model.slots)
    return model


def choose_device(wanted: str) -> torch.device:
    """`auto` is the GPU if there is one. Raises SettingsError if a GPU is wanted and there is none."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SettingsError([f"engine.device: expected a CUDA GPU for {wanted!r}, torch sees none on this node"])
    return torch.device("cuda")


def check_cache_dtype(wanted: str, device: torch.device) -> None:
    """Raises SettingsError for a `kv_cache_dtype` that the device has no numbers for."""
    if wanted != "fp8":
        return
    expected = "engine.kv_cache_dtype: expected a GPU of compute capability 8.9 or newer for 'fp8', got"
    if device.type != "cuda":
        raise SettingsError([f"{expected} a CPU"])
    if (capability := torch.cuda.get_device_capability(device)) < (8, 9):
        raise SettingsError([f"{expected} {'.'.join(map(str, capability))}"])

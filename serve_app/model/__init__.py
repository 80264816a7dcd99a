"""Kyutai's delayed-streams speech-to-text models: frames of many independent streams in, frame results out.

Knows slots, not sessions; torch and moshi, but neither Ray nor the network (except the download of a checkpoint).
"""

from serve_app.model.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from serve_app.model.model import SpeechModel, StepResult

__all__ = ["Checkpoint", "CheckpointError", "SpeechModel", "StepResult", "load_checkpoint"]

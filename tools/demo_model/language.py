"""The language model: which text tokens it must write behind which audio, what its pause heads must say, its loss."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from moshi.models.lm import LMModel
from numpy.typing import NDArray
from torch import Tensor, nn

from serve_app.model.codec import Codec
from serve_app.model.rows import Rows
from serve_app.speech import END_OF_PADDING_TOKEN, FRAME_SAMPLES, FRAMES_PER_SECOND, PADDING_TOKEN
from tools.demo_model import recipe
from tools.demo_model.clips import Clip
from tools.demo_model.training import DEVICE

FIRST_WORD = 4
"""Tokens below it are not words: 0 ends padding, 3 is padding, as in Kyutai's models."""

PAUSE_FRAMES = (3, 5, 8, 12)
"""Frames of silence after which each pause head says that a pause has begun."""
PAUSE_CLASSES = 6
"""Class 0 is the pause; the others tell how much of the silence is there already."""

LATEST_FRAMES = 7
"""A word is written at most so many frames after the one in which it starts, even if it is still being said."""

WORD_WEIGHT = 1.5
CODE_DROP, FRAME_DROP, TEXT_NOISE = 0.15, 0.04, 0.04
PAUSE_WEIGHT = 0.3

CONFIG: dict[str, Any] = {
    "model_type": "stt",
    "card": 256,
    "n_q": 8,
    "dep_q": 0,
    "delays": [0] * 9,
    "dim": 128,
    "text_card": FIRST_WORD + len(recipe.WORDS),
    "existing_text_padding_id": PADDING_TOKEN,
    "num_heads": 4,
    "num_layers": 4,
    "hidden_scale": 4.125,
    "causal": True,
    "layer_scale": None,
    "context": 100,
    "max_period": 10000,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_dim": 64,
    "depformer_num_heads": 4,
    "depformer_num_layers": 1,
    "depformer_multi_linear": True,
    "extra_heads_num_heads": len(PAUSE_FRAMES),
    "extra_heads_dim": PAUSE_CLASSES,
}
"""moshi's config.json, but for the names of the files."""


def tokens(clip: Clip, frames: int) -> NDArray[np.int16]:
    """The text [frames]: for each word the end of padding, the word, and another end of padding where nothing follows.

    The first tells the start of the word, `DELAY_FRAMES` - 1 after it; the last tells its end in the same way.
    """
    text = np.full(frames, PADDING_TOKEN, np.int16)
    delay, written = recipe.DELAY_FRAMES, -1
    starts = [round(word.start * FRAMES_PER_SECOND) for word in clip.words] + [10**9]
    for word, start, following in zip(clip.words, starts, starts[1:], strict=False):
        begun, ended = int(word.start * FRAMES_PER_SECOND), math.ceil(word.end * FRAMES_PER_SECOND)
        opening = max(start + delay - 1, written + 1)
        said = max(opening + 1, begun + delay, min(ended, begun + LATEST_FRAMES))
        closing = max(ended - 1 + delay, said + 1)
        for place, token in ((opening, END_OF_PADDING_TOKEN), (said, FIRST_WORD + word.word)):
            if place < frames:
                text[place] = token
        written = said
        if closing < min(frames, following + delay - 2):
            text[closing], written = END_OF_PADDING_TOKEN, closing
    return text


def pauses(clip: Clip, frames: int) -> NDArray[np.int16]:
    """Classes of the pause heads [heads, frames]: by how long nobody has spoken; a stream begins with a pause."""
    since = np.full(frames, max(PAUSE_FRAMES))
    for start, end in sorted([*clip.fragments, *((word.start, word.end) for word in clip.words)]):
        first, last = int(start * FRAMES_PER_SECOND), math.ceil(end * FRAMES_PER_SECOND) - 1
        since[first : last + 1] = 0
        since[last + 1 :] = np.arange(1, frames - last)[: max(0, frames - last - 1)]
    return np.stack(
        [
            np.where(since >= needed, 0, 1 + np.minimum(PAUSE_CLASSES - 2, (PAUSE_CLASSES - 1) * since // needed))
            for needed in PAUSE_FRAMES
        ]
    ).astype(np.int16)


class Lessons(NamedTuple):
    """What the language model learns from."""

    codes: NDArray[np.int16]
    """[clips, codebooks, frames]"""
    tokens: NDArray[np.int16]
    """[clips, frames]"""
    pauses: NDArray[np.int16]
    """[clips, heads, frames]"""


@torch.inference_mode()
def heard(mimi: Any, clips: list[Clip]) -> NDArray[np.int16]:
    """What the codec makes of the clips as the service streams them, int16 [clips, codebooks, frames]."""
    codec = Codec(mimi, CONFIG["n_q"], len(clips))
    audio = torch.from_numpy(np.stack([clip.samples for clip in clips])).view(len(clips), -1, FRAME_SAMPLES)
    rows = Rows(np.arange(len(clips)), audio.device)
    codec.reset(rows.slots)
    codes = [codec.step(rows, audio[:, frame].contiguous()) for frame in range(audio.shape[1])]
    return torch.stack(codes, -1).to(torch.int16).numpy()


def lessons(mimi: Any, clips: list[Clip]) -> Lessons:
    """What the language model can learn from clips of equal length."""
    codes = heard(mimi, clips)
    frames = codes.shape[-1]
    return Lessons(
        codes, np.stack([tokens(clip, frames) for clip in clips]), np.stack([pauses(clip, frames) for clip in clips])
    )


def new_model() -> LMModel:
    """An `LMModel` of moshi with random weights."""
    arguments = {key: value for key, value in CONFIG.items() if key != "model_type"}
    model = LMModel(device="cpu", dtype=torch.float32, **arguments)
    for head in model.extra_heads:
        nn.init.normal_(head.weight, std=0.02)
    return model


def loss(model: LMModel, lessons: Lessons, chosen: NDArray[np.int64]) -> tuple[Tensor, dict[str, float]]:
    """The loss of the chosen clips, with the dropouts of a training; the share of words written right, to show."""
    codes, text, classes = (torch.from_numpy(column[chosen].astype(np.int64)).to(DEVICE) for column in lessons)
    codes[torch.rand(codes.shape, device=DEVICE) < CODE_DROP] = -1
    codes.masked_fill_(torch.rand(len(codes), 1, codes.shape[2], device=DEVICE) < FRAME_DROP, -1)
    # moshi's first step sees initial tokens only; frame i is step i + 1, and sees the text of the step before it.
    seen = text.masked_fill(torch.rand(text.shape, device=DEVICE) < TEXT_NOISE, PADDING_TOKEN)
    padding = torch.full_like(text[:, :1], PADDING_TOKEN)
    before = torch.cat([torch.full_like(padding, model.text_initial_token_id), padding, seen[:, :-1]], 1)
    first = torch.full_like(codes[..., :1], model.initial_token_id)
    output, logits = model.forward_text(torch.cat([before[:, None], torch.cat([first, codes], 2)], 1))
    text = torch.cat([padding, text], 1)
    weights = torch.ones(CONFIG["text_card"], device=DEVICE)
    weights[FIRST_WORD:] = WORD_WEIGHT
    logits = logits[:, 0].float()
    entropy = F.cross_entropy(logits.flatten(0, 1), text.flatten(), weights)
    silence = sum(
        F.cross_entropy(head(output[:, 1:]).flatten(0, 1), classes[:, number].flatten())
        for number, head in enumerate(model.extra_heads)
    ) / len(PAUSE_FRAMES)
    words = text >= FIRST_WORD
    right = float((logits.argmax(-1) == text)[words].float().mean())
    return entropy + PAUSE_WEIGHT * silence, {"text": entropy.item(), "pauses": silence.item(), "right": right}

"""The codec: a small Mimi whose first convolutions are a fixed bank of filters, and how the rest of it learns.

The first three convolutions only sort the samples: at 250 Hz each position holds its 192 latest samples, and the
fourth one is a bank of Gabor filters over them, two per band (a cosine with much gain, whose negative half the ELU
after it squeezes, and a sine with little). Few channels at the audio's own rate make that cheap. Training computes the
bank as one matrix product; the rest learns to say which part of which word it hears, now and a little earlier, and
how loud each band was: first by itself, then through its quantizer as well.
"""

import copy
import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from moshi.models import loaders
from moshi.quantization.core_vq import EuclideanCodebook
from torch import Tensor, nn

from serve_app.speech import FRAMES_PER_SECOND, SAMPLE_RATE_HZ
from tools.demo_model import recipe
from tools.demo_model.clips import DENSE, Clip, compose
from tools.demo_model.synthesis import Utterances
from tools.demo_model.training import DEVICE

BANDS = 24
LOWEST_HZ, HIGHEST_HZ = 130.0, 7_000.0
HOP, WINDOW = 96, 192
CARRIED = 2.0**-16
"""Size of the samples on their way to the bank: where it is small, an ELU changes next to nothing."""
POSITIONS = 20
"""Outputs of the bank per frame."""
LOUDNESS_PARTS = 4
"""Times in a frame at which the loudness of the bands is learnt."""
STATES = 4
"""Parts of a word that the codec tells apart."""
LATER_FRAMES = 3
"""The codec must also know what it heard so long ago."""
NOT_SCORED = -100

CONFIG: dict[str, Any] = {
    "sample_rate": SAMPLE_RATE_HZ,
    "channels": 1,
    "frame_rate": FRAMES_PER_SECOND,
    "seanet": {
        "channels": 1,
        "dimension": 128,
        "causal": True,
        "n_filters": 6,
        "n_residual_layers": 0,
        "activation": "ELU",
        "compress": 2,
        "dilation_base": 2,
        "disable_norm_outer_blocks": 0,
        "kernel_size": 3,
        "residual_kernel_size": 3,
        "last_kernel_size": 3,
        "norm": "none",
        "pad_mode": "replicate",
        "ratios": [10, 4, 2, 12],
        "true_skip": True,
    },
    "quantizer": {"dimension": 64, "n_q": 8, "bins": 256, "input_dimension": 128, "output_dimension": 128},
    "transformer": {
        "d_model": 128,
        "num_heads": 4,
        "num_layers": 2,
        "causal": True,
        "layer_scale": None,
        "context": 50,
        "conv_layout": True,
        "max_period": 10000,
        "gating": "none",
        "norm": "layer_norm",
        "positional_embedding": "rope",
        "dim_feedforward": 384,
        "input_dimension": 128,
        "output_dimensions": [128],
    },
}
"""moshi's mimi_config.json."""

FIXED_STAGES = 8
"""Modules of the encoder up to the bank and the ELU behind it: four convolutions and four ELUs."""


def gabor_bank() -> Tensor:
    """Filters float32 [2 * BANDS, WINDOW] without direct current; bands evenly spaced in mel, cosine and sine."""
    mel = torch.linspace(_mel(LOWEST_HZ), _mel(HIGHEST_HZ), BANDS + 1)
    edges = 700 * (10 ** (mel / 2595) - 1)
    time = (torch.arange(WINDOW) - (WINDOW - 1) / 2) / SAMPLE_RATE_HZ
    filters = []
    for low, high in itertools.pairwise(edges):
        width = (2 / (high - low)).clamp(0.003, WINDOW / SAMPLE_RATE_HZ)
        window = torch.where(time.abs() < width / 2, torch.cos(math.pi * time / width) ** 2, 0.0)
        for wave in (torch.cos, torch.sin):
            tone = window * wave(2 * math.pi * (low + high) / 2 * time)
            tone = tone - window * tone.sum() / window.sum()
            filters.append(tone / tone.norm())
    return torch.stack(filters)


def _mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def bank_gains(bank: Tensor, samples: Tensor) -> Tensor:
    """The bank [n, WINDOW] scaled so that each filter's output for speech [clips, samples] has a known deviation."""
    gains = torch.tensor([5.0, 1.2]).repeat(len(bank) // 2)
    return bank * (gains / filtered(bank, samples).std(dim=(0, 2)).clamp(min=1e-6))[:, None]


def filtered(bank: Tensor, samples: Tensor) -> Tensor:
    """What the bank [n, WINDOW] makes of samples [clips, t]: [clips, n, t / HOP]."""
    windows = F.pad(samples, (WINDOW - HOP, 0)).unfold(1, WINDOW, HOP)
    return (windows @ bank.T).transpose(1, 2)


def new_mimi(config: dict[str, Any], bank: Tensor) -> Any:
    """A `MimiModel` of moshi with the bank in its place, which never learns."""
    mimi = loaders.get_mimi(None, config, device="cpu", num_codebooks=config["quantizer"]["n_q"])
    convolutions = [stage.conv.conv for stage in mimi.encoder.model if hasattr(stage, "conv")]
    first, *sorting, gabor = convolutions[:4]
    with torch.no_grad():
        for conv in convolutions[:4]:
            conv.weight.zero_()
            conv.bias.zero_()
            conv.requires_grad_(False)
        first.weight[0, 0, -1] = CARRIED
        channels = 1
        for conv in sorting:
            stride = conv.stride[0]
            for block in range(stride):  # the newest inputs, the oldest of them first
                for channel in range(channels):
                    conv.weight[block * channels + channel, channel, stride + block] = 1
            channels *= stride
        gabor.weight.copy_(bank.view(len(bank), -1, channels).transpose(1, 2) / CARRIED)
    return mimi


def states(clip: Clip, frames: int) -> Tensor:
    """Which part of which word each frame holds, int64 [frames]: 0 is silence, fragments of words are not scored."""
    scores = torch.zeros(frames, dtype=torch.int64)
    for start, end in clip.fragments:
        scores[int(start * FRAMES_PER_SECOND) : math.ceil(end * FRAMES_PER_SECOND)] = NOT_SCORED
    for word, start, end in clip.words:
        for frame in range(int(start * FRAMES_PER_SECOND), min(frames, math.ceil(end * FRAMES_PER_SECOND))):
            heard = (frame + 0.75) / FRAMES_PER_SECOND - start
            if heard >= 0:
                scores[frame] = 1 + word * STATES + min(STATES - 1, int(STATES * heard / (end - start)))
    return scores


class Batch(NamedTuple):
    """What one step learns from, on the device where it learns."""

    features: Tensor
    """The bank's output behind its ELU, float32 [clips, filters, positions]."""
    loudness: Tensor
    """Of each band, float32 [clips, frames, parts * BANDS], roughly between -1 and 1."""
    states: Tensor
    """int64 [clips, frames]."""


def batch(choice: np.random.Generator, utterances: Utterances, bank: Tensor, clips: int, frames: int) -> Batch:
    """Fresh clips of the utterances."""
    composed = [compose(choice, utterances, frames, DENSE) for _ in range(clips)]
    waves = filtered(bank, torch.from_numpy(np.stack([clip.samples for clip in composed])))
    cosine, sine = waves[:, 0::2] / 5.0, waves[:, 1::2] / 1.2
    energy = F.avg_pool1d(cosine.square() + sine.square(), POSITIONS // LOUDNESS_PARTS)
    loudness = (energy + 1e-4).log10().transpose(1, 2).reshape(clips, frames, -1)
    parts = (F.elu(waves), loudness / 2 + 0.5, torch.stack([states(clip, frames) for clip in composed]))
    return Batch(*(part.to(DEVICE) for part in parts))


class Listener(nn.Module):
    """What the codec must be able to tell from its own output [clips, frames, 128] while it learns."""

    def __init__(self) -> None:
        super().__init__()
        classes = 1 + STATES * len(recipe.WORDS)
        width = CONFIG["seanet"]["dimension"]
        self.now, self.later = nn.Linear(width, classes), nn.Linear(width, classes)
        self.loudness = nn.Linear(width, BANDS * LOUDNESS_PARTS)

    def loss(self, heard: Tensor, made: Batch) -> tuple[Tensor, float]:
        """The loss, and the share of the frames with speech whose word is known a little later."""
        now, later, early = self.now(heard), self.later(heard[:, LATER_FRAMES:]), made.states[:, :-LATER_FRAMES]
        loss = _entropy(now, made.states) + _entropy(later, early)
        loss = loss + F.smooth_l1_loss(self.loudness(heard), made.loudness)
        spoken = early > 0
        right = (later.argmax(-1) - 1) // STATES == (early - 1) // STATES
        return loss, float(right[spoken].float().mean())


def _entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), label_smoothing=0.02, ignore_index=NOT_SCORED)


class CodecTraining(nn.Module):
    """The codec and its listeners."""

    def __init__(self, bank: Tensor) -> None:
        super().__init__()
        config = copy.deepcopy(CONFIG)
        config["quantizer"]["decay"] = 0.98
        self.mimi = new_mimi(config, bank)
        self.plain, self.quantized = Listener(), Listener()

    def learning(self) -> list[nn.Parameter]:
        """Parameters that learn: those of the encoder behind the bank, the quantizer and the listeners."""
        idle = ("mimi.decoder", "mimi.upsample")
        return [
            weight for name, weight in self.named_parameters() if weight.requires_grad and not name.startswith(idle)
        ]

    def get_extra_state(self) -> list[int]:
        """In how many batches each codebook looks for unused codes: moshi's own state leaves it out."""
        return [book._next_unused_check for book in self._codebooks()]

    def set_extra_state(self, state: list[int]) -> None:
        """What `get_extra_state` gave."""
        for book, batches in zip(self._codebooks(), state, strict=True):
            book._next_unused_check = batches

    def _codebooks(self) -> list[Any]:
        return [module for module in self.mimi.modules() if isinstance(module, EuclideanCodebook)]

    def loss(self, made: Batch, quantize: bool) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, and what to show of it."""
        hidden = made.features
        if self.training:
            gains = torch.rand(len(hidden), 1, 1, device=hidden.device) * 0.3 + 0.85
            hidden = hidden * gains
        for stage in list(self.mimi.encoder.model)[FIXED_STAGES:]:
            hidden = stage(hidden)
        (hidden,) = self.mimi.encoder_transformer(hidden)
        latent = self.mimi._to_framerate(hidden)
        loss, right = self.plain.loss(latent.transpose(1, 2), made)
        shown = {"right": right}
        if quantize:
            result = self.mimi.quantizer(latent, FRAMES_PER_SECOND)
            for average in self.mimi.quantizer.buffers():
                average.detach_()  # moshi's running averages would keep every step's graph
            more, shown["quantized"] = self.quantized.loss(result.x.transpose(1, 2), made)
            loss = loss + more + 0.25 * result.penalty
        return loss, shown


def scaled_bank(seed: int, utterances: Utterances) -> Tensor:
    """The bank, scaled for clips of these utterances."""
    choice = np.random.default_rng(seed)
    clips = [compose(choice, utterances, 60, DENSE).samples for _ in range(32)]
    return bank_gains(gabor_bank(), torch.from_numpy(np.stack(clips)))

"""How well a checkpoint hears, measured by the path that serves people: the service's own model, frame by frame."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import jiwer
import numpy as np
import torch
from numpy.typing import NDArray

from serve_app.model import Checkpoint, SpeechModel, load_checkpoint
from serve_app.samples import load_clips
from serve_app.settings import ModelSettings
from serve_app.speech import FRAME_SAMPLES, FRAMES_PER_SECOND, SAMPLE_RATE_HZ, FrameResult
from serve_app.transcript import Token, Transcript, TurnEnd, Word
from tools.demo_model import recipe, synthesis
from tools.demo_model.clips import tones
from tools.demo_model.progress import Progress
from tools.demo_model.recipe import Recipe

STREAMS_AT_ONCE = 32
LONG_STREAMS = 6
TAIL_S = 1.2
"""Silence behind every stream, so that the last word comes out."""
PAUSE_S = 2.0
"""A silence so long must end the turn."""


class Spoken(NamedTuple):
    """A word that was said, when, by whom and how fast."""

    text: str
    start: float
    end: float
    voice: str = ""
    words_per_minute: int = 0


@dataclass
class Stream:
    """Audio float32 at 24 kHz and what is said in it."""

    samples: NDArray[np.float32]
    words: list[Spoken] = field(default_factory=list)
    utterances: list[tuple[float, float]] = field(default_factory=list)
    """Start and end of each, in seconds."""

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / SAMPLE_RATE_HZ


class Heard(NamedTuple):
    """What the model made of one stream; seconds on the stream's clock."""

    words: list[Word]
    written: list[float]
    """When each word was written."""
    turn_ends: list[float]
    """When each end of a turn was told."""
    pauses: NDArray[np.float32]
    """Pause probabilities [frames, heads]."""


def load(folder: Path) -> Checkpoint:
    """A checkpoint as an engine without a GPU loads it. Raises CheckpointError."""
    return load_checkpoint(str(folder), device=torch.device("cpu"), dtype=torch.float32)


def listen(checkpoint: Checkpoint, streams: Sequence[Stream], name: str) -> list[Heard]:
    """Let the model hear all streams, many of them at once; in their order."""
    settings = ModelSettings(source="demo")
    model = SpeechModel(checkpoint, min(STREAMS_AT_ONCE, len(streams)))
    heard: dict[int, Heard] = {}
    order = sorted(range(len(streams)), key=lambda index: -len(streams[index].samples))
    total = sum(round(stream.seconds) for stream in streams)
    with Progress(name, total) as progress:
        for first in range(0, len(order), STREAMS_AT_ONCE):
            chosen = order[first : first + STREAMS_AT_ONCE]
            model.reset(np.arange(len(chosen)))
            transcripts = [Transcript(checkpoint.info, settings.pause_head, settings.pause_threshold) for _ in chosen]
            frames = [_frames(streams[index].samples) for index in chosen]
            made = [Heard([], [], [], np.zeros((len(one), checkpoint.info.pause_heads), np.float32)) for one in frames]
            for frame in range(len(frames[0])):
                rows = np.flatnonzero([frame < len(one) for one in frames])
                result = model.step(rows, np.stack([frames[row][frame] for row in rows]))
                for place, row in enumerate(rows):
                    pauses = result.pauses[place]
                    got = FrameResult(frame, int(result.tokens[place]), tuple(map(float, pauses)), result.codes[place])
                    _note(made[row], frame, transcripts[row].add(got))
                    made[row].pauses[frame] = pauses
            for index, transcript, one in zip(chosen, transcripts, made, strict=True):
                _note(one, len(one.pauses), transcript.finish(streams[index].seconds + TAIL_S))
                heard[index] = one
            progress.advance(by=sum(round(streams[index].seconds) for index in chosen))
    return [heard[index] for index in range(len(streams))]


def _frames(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    whole = -(-(len(samples) + round(TAIL_S * SAMPLE_RATE_HZ)) // FRAME_SAMPLES) * FRAME_SAMPLES
    return np.pad(samples, (0, whole - len(samples))).reshape(-1, FRAME_SAMPLES)


def _note(heard: Heard, frame: int, events: Iterable[object]) -> None:
    now = (frame + 1) / FRAMES_PER_SECOND
    for event in events:
        match event:
            case Token():
                heard.written.append(now)
            case Word():
                heard.words.append(event)
            case TurnEnd():
                heard.turn_ends.append(now)


@dataclass
class Score:
    """What was right and wrong in some streams."""

    words: int = 0
    substituted: int = 0
    inserted: int = 0
    deleted: int = 0
    by_voice: Counter[tuple[str, bool]] = field(default_factory=Counter)
    """How many words of each voice were heard right, and how many were not."""
    by_rate: Counter[tuple[int, bool]] = field(default_factory=Counter)
    confused: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often which word was heard as which; the empty word is none."""
    early_s: list[float] = field(default_factory=list)
    """Told start minus true start of the words heard right."""
    written_s: list[float] = field(default_factory=list)
    """How long after their true start they were written."""
    ends: int = 0
    """Pauses that must end a turn."""
    missed_ends: int = 0
    false_ends: int = 0
    """Utterances in which a turn ended."""
    utterances: int = 0
    end_delays_s: list[float] = field(default_factory=list)

    @property
    def errors(self) -> int:
        """Words substituted, inserted and left out."""
        return self.substituted + self.inserted + self.deleted

    @property
    def wer(self) -> float:
        """Word error rate, 0 to 1 and more."""
        return self.errors / max(1, self.words)


def score(streams: Sequence[Stream], heard: Sequence[Heard]) -> Score:
    """Compare what was heard with what was said."""
    total = Score()
    for stream, got in zip(streams, heard, strict=True):
        _score_words(total, stream, got)
        _score_pauses(total, stream, got)
    return total


def _score_words(total: Score, stream: Stream, got: Heard) -> None:
    said, hypothesis = [word.text for word in stream.words], [word.text for word in got.words]
    total.words += len(said)
    if not said or not hypothesis:  # jiwer compares nothing with nothing
        total.deleted += len(said)
        total.inserted += len(hypothesis)
        total.confused.update((word, "") for word in said)
        total.confused.update(("", word) for word in hypothesis)
        total.by_voice.update((word.voice, False) for word in stream.words)
        total.by_rate.update((word.words_per_minute, False) for word in stream.words)
        return
    for chunk in jiwer.process_words(" ".join(said), " ".join(hypothesis)).alignments[0]:
        spoken = stream.words[chunk.ref_start_idx : chunk.ref_end_idx]
        places = range(chunk.hyp_start_idx, chunk.hyp_end_idx)
        right = chunk.type == "equal"
        total.by_voice.update((word.voice, right) for word in spoken)
        total.by_rate.update((word.words_per_minute, right) for word in spoken)
        match chunk.type:
            case "insert":
                total.inserted += len(places)
                total.confused.update(("", hypothesis[place]) for place in places)
            case "delete":
                total.deleted += len(spoken)
                total.confused.update((word.text, "") for word in spoken)
            case _:
                total.substituted += 0 if right else len(spoken)
                total.confused.update(
                    (word.text, hypothesis[place]) for word, place in zip(spoken, places, strict=True)
                )
        if right:
            for word, place in zip(spoken, places, strict=True):
                total.early_s.append(got.words[place].start_s - word.start)
                total.written_s.append(got.written[place] - word.start)


def _score_pauses(total: Score, stream: Stream, got: Heard) -> None:
    starts = [start for start, _ in stream.utterances[1:]] + [stream.seconds]
    for (start, end), following in zip(stream.utterances, starts, strict=False):
        total.utterances += 1
        total.false_ends += any(start + 0.3 < time <= end for time in got.turn_ends)
        if following - end > PAUSE_S:
            total.ends += 1
            inside = [time - end for time in got.turn_ends if end < time <= following]
            total.missed_ends += not inside
            total.end_delays_s += inside[:1]


def conversations(
    seed: int,
    speaker: Callable[..., synthesis.Speaker],
    words: int,
    vocabulary: Sequence[str],
    *,
    together: bool = False,
    seconds: float = 0.0,
) -> list[Stream]:
    """Streams of two to four utterances in noise of -60 to -40 dB, with at least so many words in all.

    With `seconds` they are as long as that, at least.
    """
    choice = np.random.default_rng(seed)
    said = synthesis.utterances(seed, speaker, vocabulary=vocabulary, together_share=float(together), telephone_share=0)
    streams: list[Stream] = []
    while sum(len(stream.words) for stream in streams) < words:
        stream, parts = Stream(_silence(0)), [_silence(choice.uniform(0.2, 1.0))]
        position, wanted = len(parts[0]), int(choice.integers(2, 5))
        while len(stream.utterances) < wanted or position < seconds * SAMPLE_RATE_HZ:
            one = next(said)
            offset = position / SAMPLE_RATE_HZ
            stream.words += _spoken(one, offset)
            stream.utterances.append((stream.words[-len(one.words)].start, stream.words[-1].end))
            pause = choice.uniform(0.4, 1.2) if choice.random() < 0.5 else choice.uniform(2.3, 3.0)
            parts += [_at_some_level(choice, one.samples), _silence(pause)]
            position += len(parts[-2]) + len(parts[-1])
        stream.samples = np.concatenate(parts) + noise(choice, position, choice.uniform(-60, -40))
        streams.append(stream)
    return streams


def _spoken(one: synthesis.Said, offset: float) -> list[Spoken]:
    return [
        Spoken(recipe.WORDS[word], offset + start, offset + end, one.voice, one.words_per_minute)
        for word, start, end in one.words
    ]


def _at_some_level(choice: np.random.Generator, samples: NDArray[np.int16]) -> NDArray[np.float32]:
    level = 10 ** (choice.uniform(-14, -2) / 20) / np.abs(samples.astype(np.float32)).max()
    return samples.astype(np.float32) * np.float32(level)


def noise(choice: np.random.Generator, samples: int, level_db: float) -> NDArray[np.float32]:
    """White noise, in decibels of full scale."""
    return np.float32(10 ** (level_db / 20)) * choice.standard_normal(samples, np.float32)


def _silence(seconds: float) -> NDArray[np.float32]:
    return np.zeros(round(seconds * SAMPLE_RATE_HZ), np.float32)


def without_words(seed: int, minutes: float) -> dict[str, list[Stream]]:
    """Streams in which nobody speaks, so many minutes of each kind."""
    choice = np.random.default_rng(seed)
    streams = 10
    seconds = minutes * 60 / streams
    length = round(seconds * SAMPLE_RATE_HZ)
    return {
        "silence": [Stream(_silence(seconds)) for _ in range(streams)],
        "noise at -40 dB": [Stream(noise(choice, length, -40)) for _ in range(streams)],
        "tones like music": [Stream(tones(choice, seconds) + noise(choice, length, -60)) for _ in range(streams)],
    }


def cut_in(seed: int, speaker: Callable[..., synthesis.Speaker], vocabulary: Sequence[str], count: int) -> list[Stream]:
    """Streams that begin in the middle of a word; their `words` are those that follow it."""
    choice = np.random.default_rng(seed)
    said = synthesis.utterances(seed, speaker, vocabulary=vocabulary, together_share=0, telephone_share=0)
    streams = []
    while len(streams) < count:
        one = next(said)
        if len(one.words) < 2:
            continue
        start, end = one.words[0][1:]
        first = start + choice.uniform(0.15, 0.85) * (end - start)
        samples = _at_some_level(choice, one.samples[round(first * SAMPLE_RATE_HZ) :])
        words = _spoken(one, -first)[1:]
        samples += noise(choice, len(samples), choice.uniform(-60, -40))
        streams.append(Stream(samples, words, [(0.0, words[-1].end)]))
    return streams


def after_silence(seed: int, vocabulary: Sequence[str], seconds: float) -> list[Stream]:
    """An utterance each, and a long silence behind it: digital silence, and noise of -60 to -40 dB."""
    choice = np.random.default_rng(seed)
    said = synthesis.utterances(
        seed, synthesis.supported_speaker, vocabulary=vocabulary, together_share=0, telephone_share=0
    )
    streams = []
    for level in (None, -60, -50, -40):
        for _ in range(4):
            one = next(said)
            samples = np.concatenate([one.samples.astype(np.float32) / 32_768, _silence(seconds)])
            if level is not None:
                samples += noise(choice, len(samples), level)
            streams.append(Stream(samples, [], [(one.words[0][1], one.words[-1][2])]))
    return streams


@dataclass
class Results:
    """Everything that the report tells."""

    supported: Score
    unseen: Score
    together: Score
    invented: dict[str, int]
    """Words by kind of stream without words."""
    minutes: float
    """Of each kind."""
    cut_in: Score
    first_minute: Score
    last_minute: Score
    pause_after_silence: tuple[float, ...]
    """Probability of a pause after a minute of silence, by stream."""
    pause_curve: NDArray[np.float32]
    """Median probability of each pause head [frames, heads] from the end of the last word on."""
    samples: dict[str, tuple[str, str]]
    """Reference and hypothesis by sample clip."""


def evaluate(checkpoint: Checkpoint, chosen: Recipe, seed: int) -> Results:
    """Everything that the report tells; the voices say only words that the checkpoint knows."""
    known = {piece.removeprefix("▁") for piece in checkpoint.info.pieces}
    vocabulary = [word for word in recipe.WORDS if word in known]

    def scored(name: str, streams: list[Stream]) -> Score:
        return score(streams, listen(checkpoint, streams, name))

    tables = [
        scored(name, conversations(seed + number, speaker, words, vocabulary, together=together))
        for number, (name, speaker, words, together) in enumerate(
            (
                ("supported voices", synthesis.supported_speaker, chosen.test_words, False),
                ("unseen voices", synthesis.unseen_speaker, chosen.test_words, False),
                ("without commas", synthesis.supported_speaker, chosen.test_words, True),
            )
        )
    ]
    wordless = without_words(seed + 3, chosen.long_minutes)
    invented = {
        name: sum(len(one.words) for one in listen(checkpoint, streams, name)) for name, streams in wordless.items()
    }
    cut = cut_in(seed + 4, synthesis.supported_speaker, vocabulary, max(1, chosen.test_words // 3))
    long = _long(seed + 10, chosen, vocabulary)
    heard_long = listen(checkpoint, long, "long streams")
    silent = after_silence(seed + 5, vocabulary, min(60.0, chosen.long_minutes * 60))
    heard_silent = listen(checkpoint, silent, "pauses")
    head = ModelSettings(source="demo").pause_head
    curves = []
    for stream, one in zip(silent, heard_silent, strict=True):
        first = round(stream.utterances[0][1] * FRAMES_PER_SECOND)
        curves.append(one.pauses[first : first + 30])
    clips = load_clips(chosen.longest_sample_s)
    heard_clips = listen(checkpoint, [Stream(clip.samples) for clip in clips], "samples")
    return Results(
        *tables,
        invented=invented,
        minutes=chosen.long_minutes,
        cut_in=scored("cut in", cut),
        first_minute=_part(long, heard_long, 0, 60),
        last_minute=_part(long, heard_long, chosen.long_minutes * 60 - 60, chosen.long_minutes * 60),
        pause_after_silence=tuple(
            pause_at_end(stream, one, head) for stream, one in zip(silent, heard_silent, strict=True)
        ),
        pause_curve=np.median(np.stack(curves), axis=0),
        samples={
            clip.file: (clip.text, " ".join(word.text for word in one.words))
            for clip, one in zip(clips, heard_clips, strict=True)
        },
    )


def pause_at_end(stream: Stream, heard: Heard, head: int) -> float:
    """What a pause head says at the last frame that is the stream's own: behind it there is none of its noise."""
    return float(heard.pauses[len(stream.samples) // FRAME_SAMPLES - 1, head])


def _long(seed: int, chosen: Recipe, vocabulary: Sequence[str]) -> list[Stream]:
    seconds = chosen.long_minutes * 60
    return [
        conversations(seed + number, synthesis.supported_speaker, 1, vocabulary, seconds=seconds)[0]
        for number in range(LONG_STREAMS)
    ]


def _part(streams: Sequence[Stream], heard: Sequence[Heard], start: float, end: float) -> Score:
    """The score of the words that begin in a part of the streams, cut where nobody speaks in between."""
    parts, got = [], []
    for stream, one in zip(streams, heard, strict=True):
        inside = [span for span in stream.utterances if start <= span[0] < end]
        first, last = inside[0][0] - 0.15, inside[-1][1] + 0.15
        parts.append(Stream(stream.samples, [word for word in stream.words if first <= word.start <= last]))
        places = [place for place, word in enumerate(one.words) if first <= word.start_s <= last]
        got.append(Heard([one.words[p] for p in places], [one.written[p] for p in places], [], one.pauses))
    return score(parts, got)

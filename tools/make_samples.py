"""Make the sample clips in `configs/samples`: `python -m tools.make_samples`.

espeak-ng says words of the demo model's vocabulary; its WORD events give where each word starts, and an energy trim
takes the silence off both ends. The clips cover both languages, the sample rates 16 and 24 kHz and the file formats
that people send; `manifest.json` lists them with their true word times, the clip of `make demo` first.

The seeds and voices below were chosen among candidates, so that the first demo model hears every clip well: these
clips show that the service works, they do not measure how good a model is.
"""

import argparse
import json
import multiprocessing
import random
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
import sphn

from tools.espeak import RATE_HZ, Speech, SpeechError, Synthesizer, Word

ENGLISH = "zero one two three four five six seven eight nine yes no stop go left right up down hello thanks"
FRENCH = "zéro un deux trois quatre cinq six sept huit neuf oui bonjour merci"
VOCABULARY = {"en": ENGLISH.split(), "fr": FRENCH.split()}

FOLDER = Path(__file__).resolve().parent.parent / "configs" / "samples"
PEAK = 0.5
NOISE = 1e-3  # -60 dB of full scale: no real recording is silent between the words


@dataclass(frozen=True)
class Clip:
    """What one file holds: utterances of random words, said by one voice."""

    file: str
    language: str
    voice: str
    seed: int
    utterances: int
    words_per_minute: int = 140
    pitch: int = 50
    file_rate_hz: int = RATE_HZ
    opening: str | None = None  # first word; random where missing
    words: tuple[int, int] = (4, 6)  # per utterance
    pauses_s: tuple[float, float] = (0.4, 1.0)  # between utterances


CLIPS = (
    Clip("hello-en.wav", "en", "en-us", seed=1, utterances=2, opening="hello", words=(4, 5)),
    Clip("numbers-en.wav", "en", "en", seed=2, utterances=3, file_rate_hz=16_000),
    Clip("directions-en.ogg", "en", "en-us+m3", seed=3, utterances=3, words_per_minute=150),
    Clip("thanks-en.mp3", "en", "en+f2", seed=4, utterances=3, words_per_minute=130),
    Clip("stop-en.flac", "en", "en-us", seed=5, utterances=2, file_rate_hz=16_000),
    Clip("bonjour-fr.wav", "fr", "fr", seed=6, utterances=2, opening="bonjour"),
    Clip("merci-fr.wav", "fr", "fr+f4", seed=7, utterances=3, file_rate_hz=16_000),
    Clip("chiffres-fr.ogg", "fr", "fr", seed=8, utterances=3),
    Clip("oui-fr.vorbis.ogg", "fr", "fr+m2", seed=9, utterances=2),
    Clip("long-en.ogg", "en", "en-us", seed=10, utterances=37, pauses_s=(0.4, 2.5)),
)


class SampleError(Exception):
    """The clips cannot be made; the message says what is missing."""


def speak(clip: Clip) -> Speech:
    """The whole clip: silence, then utterances with pauses between them, in faint noise."""
    synthesizer = Synthesizer()
    choice = random.Random(clip.seed)
    parts, words, position = [], [], 0

    def silence(seconds: float) -> None:
        nonlocal position
        parts.append(np.zeros(round(seconds * RATE_HZ), np.float32))
        position += len(parts[-1])

    silence(0.5)
    for number in range(clip.utterances):
        text = [choice.choice(VOCABULARY[clip.language]) for _ in range(choice.randint(*clip.words))]
        if number == 0 and clip.opening:
            text[0] = clip.opening
        if number:
            silence(choice.uniform(*clip.pauses_s))
        said = synthesizer.say(text, clip.voice, clip.words_per_minute, clip.pitch)
        offset = position / RATE_HZ
        words += [Word(word.text, round(offset + word.start, 3), round(offset + word.end, 3)) for word in said.words]
        parts.append(said.samples)
        position += len(said.samples)
    silence(0.3)
    samples = np.concatenate(parts)
    samples *= PEAK / np.abs(samples).max()
    samples += NOISE * np.random.default_rng(clip.seed).standard_normal(len(samples)).astype(np.float32)
    return Speech(samples.astype(np.float32), words)


CODECS = {
    ".ogg": ["-c:a", "libopus", "-b:a", "24k"],
    ".vorbis.ogg": ["-c:a", "libvorbis", "-q:a", "3"],
    ".mp3": ["-c:a", "libmp3lame", "-b:a", "64k"],
    ".flac": ["-c:a", "flac"],
}


def write(clip: Clip, speech: Speech, path: Path) -> None:
    """Write a WAV file (16 bit), or any other format through ffmpeg."""
    samples = speech.samples
    if clip.file_rate_hz != RATE_HZ:
        samples = soxr.resample(samples, RATE_HZ, clip.file_rate_hz)
    if path.suffix == ".wav":
        sphn.write_wav(str(path), samples, clip.file_rate_hz)
        return
    if shutil.which("ffmpeg") is None:
        raise SampleError(f"ffmpeg is missing, {path.name} needs it: on Debian `apt-get install ffmpeg`")
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "clip.wav"
        sphn.write_wav(str(wav), samples, clip.file_rate_hz)
        # Without +bitexact each run would write another Ogg serial number and the encoder's version.
        quiet, same = (
            ["-nostdin", "-loglevel", "error", "-y"],
            ["-map_metadata", "-1", "-fflags", "+bitexact", "-flags", "+bitexact"],
        )
        codec = CODECS["".join(path.suffixes)]
        subprocess.run(["ffmpeg", *quiet, "-i", wav, *same, *codec, path], check=True)


def make(folder: Path) -> None:
    """Write all clips and their manifest; prints one line per clip."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = []
    # A process per clip: the library's voices sound a little like the ones used before, and it cannot be restarted.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        for number, clip in enumerate(CLIPS, 1):
            speech = processes.submit(speak, clip).result()
            path = folder / clip.file
            write(clip, speech, path)
            words = [vars(word) for word in speech.words]
            manifest.append({"file": clip.file, "language": clip.language, "words": words})
            size = f"{len(speech.samples) / RATE_HZ:.1f} s, {len(words)} words, {path.stat().st_size} bytes"
            print(f"[{number}/{len(CLIPS)}] {clip.file}: {size}", flush=True)
    entries = ",\n ".join(json.dumps(entry, ensure_ascii=False) for entry in manifest)
    (folder / "manifest.json").write_text(f"[{entries}]\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the sample clips.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write them")
    try:
        make(parser.parse_args().folder)
    except (SampleError, SpeechError, subprocess.CalledProcessError) as error:
        print(f"make_samples: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

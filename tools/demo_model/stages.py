"""The stages of a training. Each keeps its result in a folder named after everything that decided it."""

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from serve_app.speech import SAMPLE_RATE_HZ
from tools import espeak
from tools.demo_model import clips as clips_of
from tools.demo_model import codec, language, pack, recipe, synthesis, training
from tools.demo_model.clips import SPARSE
from tools.demo_model.files import save, save_array
from tools.demo_model.progress import Progress
from tools.demo_model.recipe import Recipe
from tools.demo_model.training import train

SPEECH_OF_CODEC, SPEECH_OF_LANGUAGE = 1, 2
"""Added to the seed, so that the two never hear the same."""
CLIPS_AT_ONCE = 32
VOICES = [value for name, value in vars(recipe).items() if name.isupper() and name != "FULL"]
"""Who says which words: part of what decides every stage."""


class Stages:
    """One training: its recipe, its seed and the folder for its work."""

    def __init__(self, chosen: Recipe, seed: int, work: Path) -> None:
        self.recipe, self.seed, self.work = chosen, seed, work

    def speech(self, name: str, hours: float, offset: int) -> Path:
        """Utterances of voices to train on."""

        def make(folder: Path) -> None:
            wanted, said, samples = round(hours * 3600), [], 0
            with Progress(name, wanted) as progress:
                for one in synthesis.utterances(self.seed * 10 + offset, synthesis.trained_speaker):
                    said.append(one)
                    before, samples = samples, samples + len(one.samples)
                    progress.advance(by=samples // SAMPLE_RATE_HZ - before // SAMPLE_RATE_HZ)
                    if samples >= wanted * SAMPLE_RATE_HZ:
                        break
            synthesis.Utterances.of(said).save(folder)

        return self._stage(name, make, (synthesis, espeak), hours, offset)

    def codec(self) -> Path:
        """The trained codec: `codec.pt`, moshi's names of weights."""
        chosen = self.recipe
        speech = self.speech("speech-of-codec", chosen.codec_hours, SPEECH_OF_CODEC)

        def make(folder: Path) -> None:
            utterances = synthesis.Utterances.load(speech)
            torch.manual_seed(self.seed)
            bank = codec.scaled_bank(self.seed, utterances)
            learner = codec.CodecTraining(bank)

            def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
                choice = np.random.default_rng([self.seed, SPEECH_OF_CODEC, step])
                made = codec.batch(choice, utterances, bank, chosen.codec_batch, chosen.codec_frames)
                return learner.loss(made, step >= chosen.quantize_after * chosen.codec_steps)

            train(
                "codec", learner, learner.learning(), loss_of, steps=chosen.codec_steps, rate=chosen.codec_rate,
                decay=0.02, seed=self.seed, folder=folder,
            )  # fmt: skip
            save(folder / "codec.pt", learner.mimi.state_dict())

        shape = (chosen.codec_steps, chosen.codec_batch, chosen.codec_frames, chosen.codec_rate, chosen.quantize_after)
        return self._stage("codec", make, (clips_of, codec, training), speech.name, shape)

    def codes(self) -> Path:
        """Lessons for the language model: what the trained codec hears of other speech than its own."""
        chosen, trained = self.recipe, self.codec()
        speech = self.speech("speech-of-language", chosen.language_hours, SPEECH_OF_LANGUAGE)

        def make(folder: Path) -> None:
            utterances = synthesis.Utterances.load(speech)
            mimi = pack.mimi_of(torch.load(trained / "codec.pt", weights_only=True))
            choice = np.random.default_rng([self.seed, SPEECH_OF_LANGUAGE])
            made = []
            with Progress("codes", chosen.language_clips) as progress:
                while left := chosen.language_clips - sum(len(lessons.tokens) for lessons in made):
                    frames = chosen.language_frames
                    clips = [
                        clips_of.compose(choice, utterances, frames, SPARSE) for _ in range(min(CLIPS_AT_ONCE, left))
                    ]
                    made.append(language.lessons(mimi, clips))
                    progress.advance(by=len(clips))
            for name, columns in zip(language.Lessons._fields, zip(*made, strict=True), strict=True):
                save_array(folder / f"{name}.npy", np.concatenate(columns))

        shape = (chosen.language_clips, chosen.language_frames)
        return self._stage("codes", make, (clips_of, language, pack), trained.name, speech.name, shape)

    def language(self) -> Path:
        """The trained language model: `language.pt`, moshi's names of weights."""
        chosen, codes = self.recipe, self.codes()

        def make(folder: Path) -> None:
            lessons = language.Lessons(*(np.load(codes / f"{name}.npy") for name in language.Lessons._fields))
            torch.manual_seed(self.seed)
            model = language.new_model()

            def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
                choice = np.random.default_rng([self.seed, SPEECH_OF_LANGUAGE, step])
                picked = choice.integers(len(lessons.tokens), size=chosen.language_batch)
                return language.loss(model, lessons, picked)

            train(
                "language", model, model.parameters(), loss_of, steps=chosen.language_steps, rate=chosen.language_rate,
                decay=0.1, seed=self.seed, folder=folder,
            )  # fmt: skip
            save(folder / "language.pt", model.state_dict())

        shape = (chosen.language_steps, chosen.language_batch, chosen.language_rate)
        return self._stage("language", make, (language, training), codes.name, shape)

    def checkpoint(self, folder: Path) -> None:
        """Write the trained model into `folder`."""
        trained, model = self.codec(), self.language()
        folder.mkdir(parents=True, exist_ok=True)
        pack.write(
            folder,
            torch.load(trained / "codec.pt", weights_only=True),
            torch.load(model / "language.pt", weights_only=True),
        )

    def _stage(self, name: str, make: Callable[[Path], None], modules: tuple[ModuleType, ...], *inputs: object) -> Path:
        """The folder of a stage's result, made by `make` unless it is there; an unfinished one ends in `.part`.

        `modules` are those whose code `make` runs. The service's own are left out: they compute what moshi does.
        """
        everything = repr((self.seed, VOICES, inputs, [inspect.getsource(code) for code in (make, *modules)]))
        folder = self.work / f"{name}-{hashlib.sha256(everything.encode()).hexdigest()[:12]}"
        if folder.exists():
            print(f"{name}: {folder} is complete", flush=True)
            return folder
        part = folder.with_name(folder.name + ".part")
        part.mkdir(parents=True, exist_ok=True)
        make(part)
        part.rename(folder)
        return folder

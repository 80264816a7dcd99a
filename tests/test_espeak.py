"""Words said by espeak-ng, and when."""

import ctypes

import numpy as np
import pytest

from tests.system_packages import require_library
from tools.espeak import RATE_HZ, SpeechError, Synthesizer


@pytest.fixture(scope="module")
def synthesizer() -> Synthesizer:
    require_library("espeak-ng", "libespeak-ng1")
    return Synthesizer()


def test_words_are_loud_and_what_is_between_them_is_not(synthesizer: Synthesizer) -> None:
    speech = synthesizer.say(["three", "right", "six"], "en", 140, 50)
    assert [word.text for word in speech.words] == ["three", "right", "six"]
    spoken = np.zeros(len(speech.samples), bool)
    before = 0.0
    for word in speech.words:
        assert before <= word.start < word.end <= len(speech.samples) / RATE_HZ
        before = word.end
        spoken[int(word.start * RATE_HZ) : int(word.end * RATE_HZ)] = True
    power = np.square(speech.samples)
    assert power[spoken].mean() > 1_000 * power[~spoken].mean()


def test_a_larger_speaker_takes_longer(synthesizer: Synthesizer) -> None:
    lengths = [len(synthesizer.say(["merci", "oui"], "fr", 140, 50, size=size).samples) for size in (1, 1.1)]
    assert lengths[1] == pytest.approx(1.1 * lengths[0], rel=0.05)


def test_words_run_together_without_commas(synthesizer: Synthesizer) -> None:
    apart, together = (synthesizer.say(["one", "two"], "en", 140, 50, separator) for separator in (", ", " "))
    assert together.words[1].start < apart.words[1].start


def test_an_unknown_voice_is_named(synthesizer: Synthesizer) -> None:
    with pytest.raises(SpeechError, match="espeak-ng has no voice 'nobody-at-all'"):
        synthesizer.say(["one"], "nobody-at-all", 140, 50)


def test_without_espeak_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(SpeechError, match=r"espeak-ng is missing .* install it, on Debian `apt-get install espeak-ng`"):
        Synthesizer()

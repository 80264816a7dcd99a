"""Reading audio files, good and bad."""

import os
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import sphn

from serve_app.audio import files
from serve_app.audio.files import AudioFileError, read_audio
from serve_app.speech import SAMPLE_RATE_HZ

SAMPLES = Path(__file__).parent.parent / "configs" / "samples"


def tone(rate_hz: int, seconds: float = 1.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate_hz * seconds)) / rate_hz)).astype(np.float32)


def wav(data: bytes, *, channels: int, rate_hz: int, kind: int, bits: int) -> bytes:
    """A WAV file; kind 1 is integers, 3 is floating point."""
    width = channels * bits // 8
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, kind, channels, rate_hz, rate_hz * width, width, bits)
    body = b"WAVE" + head + struct.pack("<4sI", b"data", len(data)) + data
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def assert_same(samples: np.ndarray, expected: np.ndarray) -> None:
    """The ends of a resampled or encoded tone differ; its middle must not."""
    middle = slice(len(expected) // 4, len(expected) // 2)
    assert np.abs(samples[middle] - expected[middle]).max() < 0.01


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 24_000, 44_100, 48_000])
def test_any_rate_becomes_24_khz(tmp_path: Path, rate_hz: int):
    file = tmp_path / "tone.wav"
    sphn.write_wav(str(file), tone(rate_hz), rate_hz)
    samples = read_audio(file)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert abs(len(samples) - SAMPLE_RATE_HZ) <= 1
    assert_same(samples, tone(SAMPLE_RATE_HZ))


def test_channels_are_averaged(tmp_path: Path):
    file = tmp_path / "stereo.wav"
    both = np.stack([tone(24_000), np.zeros(24_000, np.float32)], axis=1)
    file.write_bytes(wav(both.astype("<f4").tobytes(), channels=2, rate_hz=24_000, kind=3, bits=32))
    assert_same(read_audio(file), tone(24_000) / 2)


def test_opus_is_told_by_its_contents(tmp_path: Path):
    file = tmp_path / "no-ending"
    sphn.write_opus(str(file), tone(24_000), 24_000)
    assert abs(len(read_audio(str(file))) - SAMPLE_RATE_HZ) < 0.1 * SAMPLE_RATE_HZ


@pytest.mark.parametrize("name", ["hello-en.wav", "numbers-en.wav", "stop-en.flac", "thanks-en.mp3"])
def test_samples_of_every_format(name: str):
    samples = read_audio(SAMPLES / name)
    assert 0.4 < np.abs(samples).max() < 0.7


@pytest.mark.parametrize("name", ["directions-en.ogg", "oui-fr.vorbis.ogg"])
def test_both_codecs_of_ogg(name: str):
    assert 0.4 < np.abs(read_audio(SAMPLES / name)).max() < 0.7


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(AudioFileError, match=r"absent\.wav: no such file"):
        read_audio(tmp_path / "absent.wav")


def test_a_folder(tmp_path: Path):
    with pytest.raises(AudioFileError, match="got a folder"):
        read_audio(tmp_path)


def test_a_path_through_a_file(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(AudioFileError, match="cannot be read"):
        read_audio(tmp_path / "file" / "below")


def test_an_empty_file(tmp_path: Path):
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioFileError, match=r"empty\.wav: expected an audio file, got an empty one"):
        read_audio(tmp_path / "empty.wav")


def test_no_samples(tmp_path: Path):
    file = tmp_path / "nothing.wav"
    file.write_bytes(wav(b"", channels=1, rate_hz=24_000, kind=1, bits=16))
    with pytest.raises(AudioFileError, match=r"nothing\.wav"):
        read_audio(file)


def test_samples_that_are_no_numbers(tmp_path: Path):
    file = tmp_path / "nan.wav"
    file.write_bytes(wav(struct.pack("<3f", 0, float("nan"), 0), channels=1, rate_hz=24_000, kind=3, bits=32))
    with pytest.raises(AudioFileError, match="finite"):
        read_audio(file)


@pytest.mark.parametrize(
    "content", [b"just some text\n" * 100, b"RIFF", b"OggS" + bytes(200), b"OggS" + b"OpusHead" * 50]
)
def test_something_else(tmp_path: Path, content: bytes):
    file = tmp_path / "odd.wav"
    file.write_bytes(content)
    with pytest.raises(AudioFileError, match=r"odd\.wav: "):
        read_audio(file)


@pytest.mark.parametrize(
    "name", ["hello-en.wav", "stop-en.flac", "thanks-en.mp3", "directions-en.ogg", "oui-fr.vorbis.ogg"]
)
@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_are_read_or_refused(tmp_path: Path, name: str, seed: int):
    content = bytearray((SAMPLES / name).read_bytes()[: 20_000 if seed % 2 else None])
    random = np.random.default_rng(seed)
    for place in random.integers(0, len(content) if seed < 2 else 400, 40):
        content[place] = random.integers(256)
    file = tmp_path / name
    file.write_bytes(content)
    try:
        samples = read_audio(file)
    except AudioFileError as error:
        assert name in str(error)  # noqa: PT017  (either outcome is fine)
    else:
        assert np.isfinite(samples).all()


def test_a_pipe_is_read_to_its_end(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    contents = (SAMPLES / "thanks-en.mp3").read_bytes()
    writer = threading.Thread(target=pipe.write_bytes, args=(contents,))
    writer.start()
    samples = read_audio(pipe)
    writer.join()
    assert np.array_equal(samples, read_audio(SAMPLES / "thanks-en.mp3"))


def test_an_endless_pipe(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "MOST_STREAMED_BYTES", 3 * 2**20)
    with pytest.raises(AudioFileError, match="/dev/zero: expected at most 3,145,728 bytes through a pipe"):
        read_audio("/dev/zero")

"""What is loaded, and what is refused with which words."""

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moshi_reference import CPU, DEMO, LM_CONFIG, MIMI_CONFIG, Case, changed
from safetensors.torch import load_file, save_file

from serve_app.model import Checkpoint, CheckpointError, SpeechModel, load_checkpoint
from serve_app.speech import ModelInfo


def load(source: Path | str, **options: Any) -> Checkpoint:
    return load_checkpoint(str(source), device=CPU, dtype=torch.float32, **options)


@pytest.fixture
def folder(tiny: Case, tmp_path: Path) -> Path:
    """A good checkpoint, to be broken."""
    return Path(shutil.copytree(tiny.folder, tmp_path / "checkpoint"))


def configure(folder: Path, name: str, config: dict[str, Any], **changes: Any) -> None:
    (folder / name).write_text(json.dumps(changed(config, **changes)))


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in load_file(path).items()}  # the file may be written again


def reweigh(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = weights_of(folder / name)
    change(weights)
    save_file(weights, folder / name)


def test_facts_of_the_demo_model() -> None:
    info = load(DEMO).info
    assert info == ModelInfo(
        name=str(DEMO), pieces=info.pieces, delay_frames=6, silence_prefix_frames=0, context_frames=100,
        codec_context_frames=25, codebooks=8, pause_heads=4,
    )  # fmt: skip
    assert len(info.pieces) == 46
    assert info.pieces[4] == "▁zero"


def test_seconds_become_frames_as_in_the_published_models(folder: Path) -> None:
    stt_config = {"audio_delay_seconds": 2.5, "audio_silence_prefix_seconds": 1.0}
    configure(folder, "config.json", LM_CONFIG, stt_config=stt_config)
    info = load(folder).info
    assert (info.delay_frames, info.silence_prefix_frames, info.codec_context_frames) == (31, 13, 5)
    assert load(folder, audio_delay_frames=32).info.delay_frames == 32


def test_the_decoder_half_of_the_codec_is_not_kept(folder: Path) -> None:
    assert not [name for name in load(folder).mimi.state_dict() if "decoder" in name or "upsample" in name]


def test_the_dtype_is_the_language_models(folder: Path) -> None:
    checkpoint = load_checkpoint(str(folder), device=CPU, dtype=torch.bfloat16)
    assert {weight.dtype for weight in checkpoint.lm.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in checkpoint.mimi.parameters()} == {torch.float32}


def test_weights_without_the_pause_heads_of_the_configuration(tiny: Case, folder: Path) -> None:
    reweigh(folder, "lm.safetensors", lambda weights: [weights.pop(f"extra_heads.{i}.weight") for i in range(4)])
    checkpoint = load(folder)
    assert checkpoint.info.pause_heads == 0
    model, reference = SpeechModel(checkpoint, 2), tiny.reference
    for frame in range(5):
        result = model.step(np.array([0, 1]), reference.audio[:2, frame])
        np.testing.assert_array_equal(result.tokens, reference.tokens[:2, frame])
        assert result.pauses.shape == (2, 0)


def test_old_names_of_weights_load_as_in_moshi(folder: Path) -> None:
    def rename(weights: dict[str, torch.Tensor]) -> None:
        for name in list(weights):
            if "in_projs.0" in name:
                weights[name.replace("in_projs.0.weight", "in_proj_weight")] = weights.pop(name)

    expected = {name: weight.clone() for name, weight in load(folder).lm.state_dict().items()}
    reweigh(folder, "lm.safetensors", rename)
    got = load(folder).lm.state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.parametrize("name", ["config.json", "lm.safetensors", "mimi.safetensors", "mimi.json", "tokenizer.model"])
def test_a_missing_file_is_named_with_what_is_there(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: expected this file, the folder holds .*, "):
        load(folder)


def test_names_default_to_moshis_own(folder: Path) -> None:
    configure(folder, "config.json", LM_CONFIG, moshi_name=None, mimi_name=None, tokenizer_name=None)
    (folder / "lm.safetensors").rename(folder / "model.safetensors")
    (folder / "mimi.safetensors").rename(folder / "tokenizer-e351c8d8-checkpoint125.safetensors")
    (folder / "tokenizer.model").rename(folder / "tokenizer_spm_32k_3.model")
    assert load(folder).info.codebooks == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", r"config\.json: expected JSON, got Expecting"),
        ("config.json", b"\xff", r"config\.json: expected JSON, got 'utf-8'"),
        ("config.json", b"[]", r"config\.json: expected a JSON object, got list"),
        ("mimi.json", b"nothing", r"mimi\.json: expected JSON"),
        ("tokenizer.model", b"nothing", r"tokenizer\.model: expected a sentencepiece model"),
        ("lm.safetensors", b"nothing", r"lm\.safetensors: expected safetensors"),
        ("mimi.safetensors", b"", r"mimi\.safetensors: expected safetensors"),
    ],
)
def test_an_unreadable_file_is_named(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "tts"}, "expected model_type to be 'stt', got 'tts'"),
        ({"dep_q": 8}, "expected dep_q to be 0 .*, got 8"),
        ({"dep_q": None}, "expected dep_q to be 0 .*, got 'nothing'"),
        ({"delays": [0, 0, 1, 1, 1]}, r"expected delays to be 5 zeros \(n_q \+ 1\), got \[0, 0, 1, 1, 1\]"),
        ({"card": None}, "expected card to be a positive whole number, got 'nothing'"),
        ({"card": 64}, "expected quantizer.bins to be the language model's card, 64, got 32"),
        ({"n_q": 8, "delays": [0] * 9}, "expected quantizer.n_q to be at least the language model's n_q, 8, got 6"),
        ({"context": 0}, "expected context to be a positive whole number, got 0"),
        ({"conditioners": {"speaker": {}}}, "expected conditioners to be absent or empty"),
        ({"cross_attention": True}, "expected cross_attention to be absent or empty, got True"),
        ({"fuser": {"sum": ["speaker"]}}, "expected fuser to be absent, or without conditions"),
        ({"existing_text_padding_id": 5}, "expected existing_text_padding_id to be 3, got 5"),
        ({"existing_text_end_padding_id": 5}, "expected existing_text_end_padding_id to be 0, got 5"),
        ({"positional_embedding": "sin"}, "expected positional_embedding to be 'rope', got 'sin'"),
        ({"num_heads": 5}, "expected dim to be a multiple of twice num_heads, got 32"),
        ({"weights_per_step": 4}, "expected weights_per_step to be absent or empty, got 4"),
        ({"text_card": 41}, r"tokenizer.model: expected a piece for each of 41 tokens \(text_card\), got 40 pieces"),
        ({"stt_config": {}}, r"expected stt_config\.audio_delay_seconds, got nothing"),
        ({"stt_config__audio_delay_seconds": "0.5"}, r"expected stt_config\.audio_delay_seconds to be seconds"),
        ({"unknown_key": 1}, r"config\.json: expected the configuration of a moshi model, got TypeError.*unknown_key"),
        ({"moshi_name": "lm.bin"}, r"lm\.bin: expected this file"),
    ],
)
def test_a_language_model_that_does_not_fit_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    configure(folder, "config.json", LM_CONFIG, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_rate": 16000}, "expected sample_rate to be 24000 Hz, got 16000"),
        ({"frame_rate": 25}, "expected frame_rate to be 12.5 Hz, got 25"),
        ({"channels": 2}, "expected channels to be 1, got 2"),
        ({"seanet": None}, "expected seanet to be an object, got 'nothing'"),
        ({"seanet__ratios": [7, 5]}, "expected seanet.ratios to be factors whose product divides 1920"),
        ({"seanet__ratios": None}, "expected seanet.ratios to be factors whose product divides 1920, got None"),
        ({"seanet__activation": "Nonsense"}, "expected the configuration of a Mimi codec, got AttributeError"),
        ({"transformer__context": 1}, "expected transformer.context to be at least 2, the positions of one frame"),
        ({"transformer__num_heads": 5}, "expected transformer.d_model to be a multiple of twice transformer.num_heads"),
        ({"quantizer__dimension": "many"}, "expected the configuration of a Mimi codec, got TypeError"),
    ],
)
def test_a_codec_that_does_not_fit_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    configure(folder, "mimi.json", MIMI_CONFIG, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize("name", ["lm.safetensors", "mimi.safetensors"])
def test_weights_that_do_not_fit_are_refused_before_they_are_read(folder: Path, name: str) -> None:
    weight = {"lm.safetensors": "text_emb.weight", "mimi.safetensors": "encoder.model.0.conv.conv.weight"}[name]
    good = weights_of(folder / name)
    for change, message in (
        ({weight: None}, f"but {weight} is missing"),
        ({weight: torch.zeros(3, 2, 1)}, f"the shapes of the configuration, got: (?s:.*){weight}"),
        ({"stray": torch.zeros(1)}, "but stray has no place"),
        ({"stray": torch.zeros(1), "other": torch.zeros(1)}, r"has no place \(and 1 more\)"),
    ):
        weights = {key: value for key, value in {**good, **change}.items() if value is not None}
        save_file(weights, folder / name)
        with pytest.raises(CheckpointError, match=f"{name}: expected .*{message}"):
            load(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    configure(folder, "config.json", LM_CONFIG, moshi_name="lm.pt")
    torch.save({}, folder / "lm.pt")
    with pytest.raises(CheckpointError, match=r"lm\.pt: expected a \.safetensors file, got \.pt"):
        load(folder)


@pytest.mark.parametrize("source", ["no-such-folder", "a/b/c", "./nowhere", str(DEMO / "config.json")])
def test_a_source_that_is_neither_folder_nor_hub_id_is_refused(source: str) -> None:
    with pytest.raises(CheckpointError, match=r"expected a folder with a config\.json, or a hub id like"):
        load(source)


class _Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as downloads need: one repository."""

    folder: Path
    repository = "someone/tiny-stt"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        known = self.path.startswith(f"/{self.repository}/resolve/main/")
        path = self.folder / self.path.rsplit("/", 1)[1]
        if not known or not path.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A hub on this machine; its one repository's id."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"folder": folder}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield _Hub.repository
    server.shutdown()
    server.server_close()


def test_a_checkpoint_is_downloaded_once_from_the_hub(hub: str, tiny: Case, tmp_path: Path) -> None:
    checkpoint = load(hub, cache_dir=tmp_path)
    assert checkpoint.info.name == hub
    result = SpeechModel(checkpoint, 1).step(np.array([0]), tiny.reference.audio[:1, 0])
    np.testing.assert_array_equal(result.tokens, tiny.reference.tokens[:1, 0])

    script = f"""
from pathlib import Path
import torch
from serve_app.model import CheckpointError, load_checkpoint
options = dict(device=torch.device("cpu"), dtype=torch.float32, cache_dir=Path({str(tmp_path)!r}))
assert load_checkpoint({hub!r}, **options).info.codebooks == 4
try:
    load_checkpoint("someone/else", **options)
except CheckpointError as error:
    assert "someone/else/config.json: not in the local cache, and the hub cannot be reached" in str(error), error
else:
    raise AssertionError("expected CheckpointError")
"""
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", script], check=True, cwd=DEMO.parents[2], env=offline, timeout=60)


def test_hub_errors_say_what_is_missing(hub: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="someone/else: the hub knows no such model"):
        load("someone/else", cache_dir=tmp_path / "cache")
    (folder / "mimi.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"someone/tiny-stt: expected the file mimi\.safetensors on the hub"):
        load(hub, cache_dir=tmp_path / "cache")

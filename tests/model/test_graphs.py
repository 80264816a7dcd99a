"""Steps of fixed widths against moshi: recorded as graphs where there is a GPU, else run as they would be recorded."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from moshi_reference import Case
from player import Player

from serve_app.model import SpeechModel, load_checkpoint
from serve_app.model.decoder import Decoder
from serve_app.model.graphs import step_widths
from serve_app.model.static_rows import StaticRows
from serve_app.speech import FRAME_SAMPLES, History

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    """The reference ran on a CPU, which has no TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def graphed(tiny: Case) -> Case:
    """The checkpoint that is most like a real one, on the GPU where there is one."""
    return tiny._replace(checkpoint=load_checkpoint(str(tiny.folder), device=DEVICE, dtype=torch.float32))


@pytest.mark.parametrize("slots", [1, 2, 5, 8, 9, 32, 1000])
def test_widths_reach_every_slot_with_little_padding(slots: int) -> None:
    widths = step_widths(slots)
    assert widths == sorted(set(widths))
    assert widths[-1] == slots
    for rows in range(1, slots + 1):
        width = min(width for width in widths if width >= rows)
        assert width - rows <= max(3, rows // 4)


def test_batches_padded_to_a_width_equal_moshi(graphed: Case) -> None:
    player = Player(graphed, SpeechModel(graphed.checkpoint, 5, graphs=True))
    player.model.warm_up()
    for tick in range(9):
        for slot, start in enumerate((0, 1, 2, 4, 7)):
            if tick == start:
                player.start(slot, slot)
        player.step([slot for slot in (3, 0, 4, 1, 2) if (tick + slot) % 4])


def test_streams_move_into_graphs_at_any_age(graphed: Case) -> None:
    player = Player(graphed, SpeechModel(graphed.checkpoint, 5, graphs=True))
    for stream, frames in enumerate((16, 2, 13)):
        player.playing[stream] = (stream, frames)  # as another engine left them
    player.move({0: 4, 1: 1, 2: 0})
    for _ in range(4):
        player.step(range(5))


def step(decoder: Decoder, slots: list[int], codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and pause probabilities of a step without positions on the host."""
    index = np.array(slots)
    rows = StaticRows(*torch.from_numpy(np.stack([index, *decoder.rings.places(index)])).to(DEVICE))
    with torch.inference_mode():
        tokens, pauses, _ = decoder.step(rows, torch.from_numpy(codes).to(DEVICE))
    decoder.rings.count(index, 1)
    return tokens.cpu().numpy(), pauses.cpu().numpy()


def test_a_prefill_of_8_bit_rings_leaves_what_steps_leave(graphed: Case) -> None:
    codes, frames = graphed.reference.codes[0], 20
    decoder = Decoder(graphed.checkpoint.lm, 2, eight_bit=True)
    tokens = [step(decoder, [0], codes[None, frame])[0][0] for frame in range(frames)]
    history = History(
        frames, np.array(tokens, np.int32), codes[:frames].astype(np.int16), np.zeros((0, FRAME_SAMPLES), np.float32)
    )
    list(decoder.prefill(1, history))
    for frame in range(frames, frames + 4):
        token, pauses = step(decoder, [0, 1], codes[[frame, frame]])
        assert token[0] == token[1]
        np.testing.assert_allclose(pauses[0], pauses[1], atol=1e-3)

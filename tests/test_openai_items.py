"""Which realtime item gets which words, whatever order words, pauses and the client's commits come in."""

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from serve_app.protocols.openai.realtime_items import Items, ServerEvent
from serve_app.session.core import Flushed
from serve_app.transcript import Token, TurnEnd, Word, WordStart

DELTA = "conversation.item.input_audio_transcription.delta"
COMPLETED = "conversation.item.input_audio_transcription.completed"

STEPS = st.lists(st.sampled_from(["word", "pause", "commit", "clear", "flushed", "on", "off"]), max_size=40)


def told(steps: list[str]) -> tuple[list[ServerEvent], int]:
    """What clients are told, and how many words that was out of; each step takes a second."""
    items = Items(is_beta=False)
    events: list[ServerEvent] = []
    pending: deque[str] = deque()
    heard = False
    words = 0
    for now, step in enumerate([*steps, *["flushed"] * len(steps)], 1):
        match step:
            case "word":
                words += 1
                events += items.hear(Token(f" w{words}", now))
                events += items.hear(WordStart(f"w{words}", now - 1))
                events += items.hear(Word(f"w{words}", now - 1, now))
                heard = True
            case "pause" if heard:
                events += items.hear(TurnEnd(now))
                heard = False
            case "commit":
                events += items.commit(now)
                pending.append(step)
            case "clear":
                items.clear(now)
                pending.append(step)
            case "flushed" if pending:
                pending.popleft()
                events += items.hear(Flushed())
            case "on" | "off":
                items.detects_turns = step == "on"
    return events, words


@given(STEPS)
def test_what_is_told_is_told_once_and_of_the_right_item(steps):
    events, _ = told(steps)
    committed = [event["item_id"] for event in events if event["type"] == "input_audio_buffer.committed"]
    completed = {event["item_id"]: event["transcript"] for event in events if event["type"] == COMPLETED}
    assert sorted(committed) == sorted(completed)
    for item, transcript in completed.items():
        deltas = [event["delta"] for event in events if event["type"] == DELTA and event["item_id"] == item]
        assert "".join(deltas) == transcript == transcript.strip()
        kinds = [event["type"] for event in events if event.get("item_id") == item]
        assert DELTA not in kinds[kinds.index(COMPLETED) :]
        speech = [kind for kind in kinds if "speech" in kind]
        assert speech[::2] == ["input_audio_buffer.speech_started"] * len(speech[::2])
        assert speech[1::2] == ["input_audio_buffer.speech_stopped"] * len(speech[1::2])
    said = [word for event in events if event["type"] == DELTA for word in event["delta"].split()]
    assert said == sorted(said, key=lambda word: int(word[1:]))
    assert len(said) == len(set(said))
    seconds = [event["usage"]["seconds"] for event in events if event["type"] == COMPLETED]
    assert 0 <= sum(seconds) <= len(steps)


@given(st.lists(st.sampled_from(["word", "pause", "commit", "flushed"]), max_size=40))
def test_without_a_clear_every_word_is_told(steps):
    events, words = told([*steps, "commit"])
    said = [word for event in events if event["type"] == COMPLETED for word in event["transcript"].split()]
    assert said == [f"w{number}" for number in range(1, words + 1)]


def test_a_pause_behind_a_commit_ends_no_second_item():
    events, _ = told(["word", "commit", "pause", "flushed"])
    assert [event["type"] for event in events if event["type"] != DELTA] == [
        "input_audio_buffer.speech_started", "input_audio_buffer.committed", "conversation.item.added",
        "conversation.item.done", "input_audio_buffer.speech_stopped", COMPLETED,
    ]  # fmt: skip

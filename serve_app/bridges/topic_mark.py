"""Which topic a committed position belongs to: pure.

A topic that was deleted and made again has the same name, and offsets that mean other messages. Only its id tells it
apart. So the id is written before the text that is committed with a position.
"""

SCHEME = "topic:"
"""What our marks begin with: others may have committed positions of this group, too."""

MARK_BYTES = len(SCHEME) + 22 + 1
"""How long a mark is: brokers' ids are 16 bytes, in base64 without padding."""


def mark(topic_id: str, text: str) -> str:
    """The text with its mark; unchanged where the id is not known ('')."""
    return f"{SCHEME}{topic_id} {text}" if topic_id else text


def unmark(marked: str) -> tuple[str, str]:
    """The topic's id, '' where there is no mark, and the text."""
    if not marked.startswith(SCHEME):
        return "", marked
    topic_id, _, text = marked.removeprefix(SCHEME).partition(" ")
    return topic_id, text

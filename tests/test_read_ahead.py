from serve_app.protocols.read_ahead import MESSAGE_BYTES, MOST_BYTES, OWN_BYTES, ReadAhead

MESSAGE = 2**16


def fill(reader) -> int:
    read = 0
    while reader.has_room:
        reader.add(MESSAGE - MESSAGE_BYTES)
        read += MESSAGE
    return read


def test_one_connection_may_read_two_minutes_ahead():
    assert fill(ReadAhead().open()) == MOST_BYTES


def test_when_the_memory_is_used_up_everybody_still_has_their_own():
    shared = ReadAhead(OWN_BYTES)
    first, second = shared.open(), shared.open()
    assert fill(first) == 2 * OWN_BYTES
    assert fill(second) == OWN_BYTES
    first.close()
    assert fill(second) == OWN_BYTES  # as much again


def test_what_was_lent_is_given_back_once():
    shared = ReadAhead(OWN_BYTES)
    reader = shared.open()
    fill(reader)
    reader.close()
    reader.close()
    assert fill(shared.open()) == 2 * OWN_BYTES


def test_many_empty_messages_are_bounded():
    reader = ReadAhead(0).open()
    for _ in range(OWN_BYTES // MESSAGE_BYTES):
        assert reader.has_room
        reader.add(0)
    assert not reader.has_room

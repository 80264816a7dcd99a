"""The vault against a simple model of what it must know, whatever the order of saves, takes and losses."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.session import vault as vault_module
from serve_app.session.vault import Checkpoint, Piece, Vault

KEEP = 60.0


def save(vault: Vault, hold: str, pieces: tuple[Piece, ...] = (), tokens: tuple[str, ...] = ("t",), state=b"s"):
    return vault.save([Checkpoint(hold, tokens, "me", state, pieces)], [], [])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), st.booleans()), max_size=30))
def test_a_record_is_what_is_needed_of_its_pieces_or_is_asked_for_whole(steps):
    """A record grows; what lies before its floor may go; now and then a piece does not arrive."""
    vault = Vault(KEEP, 2**20)
    stop = floor = known = 0
    for grows, floor_moves, arrives in steps:
        stop += grows
        floor = min(stop, floor + floor_moves)
        if not arrives:
            continue
        start = max(known, floor)

        def piece(first: int, stop: int = stop, floor: int = floor) -> Piece:
            return Piece(first, stop, floor, bytes(range(first, stop)))

        if save(vault, "a", (piece(start),)).incomplete:
            assert not save(vault, "a", (piece(floor),)).incomplete
        known = stop
        taken = vault.take("t", "me", "b")
        assert taken
        data = b"".join(taken.records[0])
        assert data[len(data) - (stop - floor) :] == bytes(range(floor, stop))
        vault.save([], [], ["a"])
        vault._taken.clear()
        save(vault, "a", (piece(floor),))


def test_a_token_works_for_its_owner_until_the_session_is_saved_under_the_next_one():
    vault = Vault(KEEP, 2**20)
    save(vault, "a", tokens=("first",))
    assert vault.take("first", "somebody else", "x") is None
    assert vault.take("another", "me", "x") is None
    assert vault.take("first", "me", "b")
    save(vault, "b", tokens=("second", "first"), state=b"later")
    assert vault.take("first", "me", "c").state == b"later"  # the answer with the second one may have got lost
    save(vault, "c", tokens=("third",))
    for token in ("first", "second"):
        assert vault.take(token, "me", "x") is None
    assert vault.take("third", "me", "d")


def test_who_takes_a_session_and_dies_before_saving_it_loses_nothing():
    vault = Vault(KEEP, 2**20)
    save(vault, "a")
    assert vault.take("t", "me", "dies")
    assert vault.take("t", "me", "lives")
    assert save(vault, "dies", tokens=("t2",)).taken == ("dies",)
    assert save(vault, "lives", tokens=("t3",)).taken == ()
    assert vault.take("t", "me", "x") is None
    assert vault.take("t3", "me", "y")


def test_who_held_a_session_hears_that_it_was_taken_and_cannot_bring_it_back():
    vault = Vault(KEEP, 2**20)
    save(vault, "a")
    assert vault.take("t", "me", "b")
    assert save(vault, "a").taken == ("a",)
    assert vault.save([], ["a"], []).taken == ("a",)
    save(vault, "b", tokens=("t2",))
    vault.save([], [], ["b"])
    assert vault.take("t", "me", "c") is None
    assert vault.take("t2", "me", "c") is None


def test_a_vault_that_lost_everything_says_so():
    vault = Vault(KEEP, 2**20)
    late = (Piece(5, 7, 2, b"56"),)
    assert save(vault, "a", late).incomplete == ("a",)
    assert vault.save([], ["b"], []).incomplete == ("b",)
    assert vault.take("t", "me", "x") is None


def test_sessions_are_forgotten_when_over_and_when_nobody_comes_back(monkeypatch):
    now = 1_000.0
    monkeypatch.setattr(vault_module.time, "monotonic", lambda: now)
    vault = Vault(KEEP, 2**20)
    for hold in "abc":
        save(vault, hold, tokens=(hold,))
    vault.save([], [], ["a"])
    now += KEEP - 1
    vault.save([], ["b"], [])
    now += 2
    assert vault.take("a", "me", "x") is None
    assert vault.take("b", "me", "x")
    assert vault.take("c", "me", "x") is None
    now += KEEP + 1
    assert vault.save([], [], []).size_bytes == 0


def test_the_memory_is_bounded_and_the_longest_silent_go_first():
    vault = Vault(KEEP, 10_000)
    for number in range(30):
        answer = save(vault, str(number), tokens=(str(number),), state=bytes(1_000))
        vault.save([], ["0"], [])
        assert answer.size_bytes <= 10_000
    assert vault.take("0", "me", "x")
    assert vault.take("15", "me", "x") is None
    assert vault.take("29", "me", "x")

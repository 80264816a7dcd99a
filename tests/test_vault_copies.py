"""Two vaults as one, whichever of them is lost, comes back empty, or has missed something."""

import pytest

from serve_app.session import vault_copies
from serve_app.session.vault import Checkpoint, NoVault, Piece, VaultUnavailable
from serve_app.session.vault_copies import VaultCopies
from tests.support import LocalVault

KEEP = 60.0


class AbsentVault(LocalVault):
    """The second vault of a cluster with one node."""

    def _check(self) -> None:
        raise NoVault("one node")


@pytest.fixture
def first():
    return LocalVault(KEEP)


@pytest.fixture
def second():
    return LocalVault(KEEP)


@pytest.fixture
def copies(first, second, monkeypatch):
    monkeypatch.setattr(vault_copies, "REST_SECONDS", 0.0)
    return VaultCopies([first, second])


def checkpoint(stop: int, hold: str = "a", token: str = "t", *, whole: bool = False) -> Checkpoint:
    start = 0 if whole or not stop else stop - 1
    return Checkpoint(hold, (token,), "me", b"%d" % stop, (Piece(start, stop, 0, bytes(stop - start)),))


async def save(copies: VaultCopies, *checkpoints: Checkpoint):
    return await copies.save(checkpoints, [], [])


async def test_a_session_is_in_both_and_comes_out_once(copies, first, second):
    answer = await save(copies, checkpoint(1))
    assert (answer.copies, answer.sessions, answer.incomplete) == (2, 1, ())
    assert (await copies.take("t", "me", "b")).state == b"1"
    assert (await save(copies, checkpoint(2))).taken == ("a",)
    assert not (await save(copies, checkpoint(2, "b", "t2", whole=True))).taken
    for vault in (first, second):
        assert vault.vault.take("t", "me", "c") is None
        assert vault.vault.take("t2", "me", "c").state == b"2"


@pytest.mark.parametrize("lost", [0, 1])
async def test_either_may_be_lost(copies, first, second, lost):
    await save(copies, checkpoint(1))
    (first, second)[lost].available = False
    answer = await save(copies, checkpoint(2))
    assert (answer.copies, answer.incomplete) == (1, ())
    assert (await copies.take("t", "me", "b")).state == b"2"
    assert (await save(copies, checkpoint(3))).taken == ("a",)


async def test_one_that_comes_back_empty_asks_for_each_session_whole(copies, first, second):
    await save(copies, checkpoint(1))
    second.vault = LocalVault(KEEP).vault
    answer = await save(copies, checkpoint(2))
    assert (answer.gaps, answer.incomplete) == (("a",), ())
    answer = await save(copies, checkpoint(3, whole=True))
    assert (answer.gaps, answer.incomplete) == ((), ())
    first.available = False
    assert (await copies.take("t", "me", "b")).state == b"3"


async def test_of_two_the_one_that_has_come_further_counts(copies, first, second):
    await save(copies, checkpoint(1))
    first.available = False
    await save(copies, checkpoint(2))
    first.available = True
    saved = await copies.take("t", "me", "b")
    assert saved.state == b"2"
    assert (await save(copies, checkpoint(3))).taken == ("a",)


async def test_nothing_is_denied_while_one_that_may_have_it_is_silent(copies, first, second):
    await save(copies, checkpoint(1))
    first.available = False
    second.vault = LocalVault(KEEP).vault
    with pytest.raises(VaultUnavailable):
        await copies.take("t", "me", "b")
    first.available = True
    assert await copies.take("t", "me", "b")


async def test_without_any_nothing_is_saved(copies, first, second):
    first.available = second.available = False
    with pytest.raises(VaultUnavailable):
        await save(copies, checkpoint(1))
    first.available = True
    assert (await save(copies, checkpoint(1))).copies == 1


async def test_where_there_can_be_no_second_one_the_first_one_is_all(first):
    copies = VaultCopies([first, AbsentVault(KEEP)])
    assert (await save(copies, checkpoint(1))).copies == 1
    assert await copies.take("unknown", "me", "b") is None
    assert await copies.take("t", "me", "b")
    first.available = False
    with pytest.raises(VaultUnavailable):
        await copies.take("t", "me", "c")


async def test_a_silent_one_is_left_alone_for_a_while(first, second):
    asked = []
    second.available = False
    second._check = lambda: (asked.append(1), LocalVault._check(second))
    copies = VaultCopies([first, second])
    for stop in range(1, 6):
        assert (await save(copies, checkpoint(stop))).copies == 1
    assert len(asked) == 1
    assert await copies.take("t", "me", "b")
    assert len(asked) == 1


async def test_what_no_vault_has_is_incomplete(copies, first, second):
    await save(copies, checkpoint(1))
    first.vault = LocalVault(KEEP).vault
    second.vault = LocalVault(KEEP).vault
    answer = await save(copies, checkpoint(2))
    assert (answer.gaps, answer.incomplete) == ((), ("a",))


@pytest.mark.parametrize("silent", [0, 1])
@pytest.mark.parametrize("calls_first", ["save", "take"])
async def test_a_spent_token_stays_spent_in_a_vault_that_was_silent(copies, first, second, silent, calls_first):
    await save(copies, checkpoint(1))
    vault = (first, second)[silent]
    vault.available = False
    await save(copies, checkpoint(2))
    assert (await copies.take("t", "me", "b")).state == b"2"
    assert not (await save(copies, checkpoint(3, "b", "t2", whole=True))).all_told
    vault.available = True
    if calls_first == "save":
        assert (await save(copies, checkpoint(4, "b", "t2"))).all_told
        assert vault.vault.take("t", "me", "another ingress") is None
    assert await copies.take("t", "me", "c") is None
    assert not (await save(copies, checkpoint(5, "b", "t2", whole=True))).taken
    assert (await copies.take("t2", "me", "d")).state == b"5"


@pytest.mark.parametrize("silent", [0, 1])
async def test_who_held_it_cannot_bring_it_back_to_a_vault_that_was_silent(copies, first, second, silent):
    await save(copies, checkpoint(1))
    vault = (first, second)[silent]
    vault.available = False
    assert await copies.take("t", "me", "b")
    vault.available = True
    await save(copies, checkpoint(2, "b", "t2", whole=True))
    assert (await save(VaultCopies([vault]), checkpoint(2, whole=True))).taken == ("a",)
    assert vault.vault.take("t", "me", "c") is None


@pytest.mark.parametrize("silent", [0, 1])
async def test_a_vault_that_was_silent_is_told_what_is_over(copies, first, second, silent):
    await save(copies, checkpoint(1))
    vault = (first, second)[silent]
    vault.available = False
    assert not (await copies.save([], [], ["a"])).all_told
    vault.available = True
    assert await copies.take("t", "me", "b") is None
    assert (await save(copies)).all_told
    assert vault.vault.take("t", "me", "b") is None


async def test_what_was_taken_and_is_over_is_over_in_a_vault_that_heard_only_that_it_was_taken(copies, second):
    await save(copies, checkpoint(1))
    assert await copies.take("t", "me", "b")
    second.available = False
    await save(copies, checkpoint(2, "b", "t2", whole=True))
    await copies.save([], [], ["b"])
    second.available = True
    assert await copies.take("t", "me", "c") is None


async def test_nothing_is_kept_for_a_vault_that_there_is_not_or_beyond_a_bound(first, second, monkeypatch):
    monkeypatch.setattr(vault_copies, "MOST_UNTOLD", 2)
    assert (await VaultCopies([first, AbsentVault(KEEP)]).save([], [], ["a"])).all_told
    copies = VaultCopies([first, second])
    await save(copies, *(checkpoint(1, hold, hold) for hold in "abc"))
    second.available = False
    await copies.save([], [], ["a", "b", "c"])
    second.available = True
    monkeypatch.setattr(vault_copies, "REST_SECONDS", 0.0)
    copies._rests_until = [0.0, 0.0]
    await save(copies)
    assert [bool(second.vault.take(token, "me", "x")) for token in "abc"] == [True, False, False]

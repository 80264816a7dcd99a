from serve_app.ingress.placement import Placement


def ranks(placement: Placement, names: str, refused: str = "") -> list[str]:
    """`refused` have refused in this order."""
    times = {name: float(at) for at, name in enumerate(refused)}
    return ["".join(rank) for rank in placement.ranks(list(names), times.get)]


def test_the_oldest_come_first_however_they_are_listed():
    placement = Placement()
    placement.update("ab")
    placement.update("cba")
    assert ranks(placement, "cba") == ["a", "b", "c"]


def test_a_replica_that_comes_back_is_new():
    placement = Placement()
    for names in ("ab", "b", "ba"):
        placement.update(names)
    assert ranks(placement, "ab") == ["b", "a"]


def test_who_refused_comes_last():
    placement = Placement()
    placement.update("abc")
    assert ranks(placement, "abc", refused="a") == ["b", "c", "a"]
    assert ranks(placement, "abc", refused="cab") == ["c", "a", "b"]


def test_who_was_never_announced_counts_as_the_newest():
    placement = Placement()
    assert ranks(placement, "x") == ["x"]
    placement.update("ab")
    assert ranks(placement, "xba") == ["a", "b", "x"]


def test_spread_leaves_the_choice_among_equals_to_serve():
    placement = Placement(spread=True)
    placement.update("abc")
    assert ranks(placement, "cab") == ["abc"]
    assert ranks(placement, "cab", refused="a") == ["bc", "a"]
    assert ranks(placement, "cab", refused="bac") == ["b", "a", "c"]
    assert ranks(placement, "a", refused="a") == ["a"]

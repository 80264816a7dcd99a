"""Where the vaults are put. Real ones on real nodes: tests/long/test_chaos.py; on a single node: tests/system."""

import pytest

from serve_app.ingress.ray_vault import NoPlace, place_vault


def node(name: str, gpus: float = 0.0, *, alive: bool = True) -> dict:
    return {"NodeID": name, "Alive": alive, "Resources": {"CPU": 4.0} | ({"GPU": gpus} if gpus else {})}


def test_a_single_node_has_one_vault():
    for single in (node("a"), node("a", gpus=1)):
        assert place_vault([single], None, needed=False) == "a"
        for taken in (None, "a"):
            with pytest.raises(NoPlace):
                place_vault([single, node("b", alive=False)], taken, needed=True)
    assert place_vault([], None, needed=False) is None


def test_the_second_is_never_beside_the_first():
    nodes = [node("a"), node("b"), node("c", alive=False)]
    assert place_vault(nodes, "a", needed=True) == "b"
    assert place_vault(nodes, "b", needed=False) == "a"
    with_gpus = [node("a", 1), node("b", 1)]
    assert place_vault(with_gpus, "a", needed=True) == "b"


def test_machines_with_gpus_can_be_stopped_when_nobody_speaks():
    nodes = [node("gpu-1", 1), node("cpu"), node("gpu-2", 8)]
    assert place_vault(nodes, None, needed=False) == "cpu"
    assert place_vault(nodes, "gpu-1", needed=True) == "cpu"
    with pytest.raises(NoPlace):
        place_vault(nodes, "cpu", needed=True)

"""Where the vaults are put. Real ones on real nodes: tests/long/test_chaos.py; on a single node: tests/system."""

import pytest

from serve_app.ingress.ray_vault import NoPlace, place_vault


def node(name: str, gpus: float = 0.0, *, alive: bool = True) -> dict:
    return {"NodeID": name, "Alive": alive, "Resources": {"CPU": 4.0} | ({"GPU": gpus} if gpus else {})}


def test_a_single_node_has_one_vault_wherever_ray_puts_it():
    assert place_vault([node("a")], None, needed=False) is None
    assert place_vault([node("a", gpus=1)], None, needed=False) is None
    for taken in (None, "a"):
        with pytest.raises(NoPlace):
            place_vault([node("a"), node("b", alive=False)], taken, needed=True)


def test_the_second_is_never_beside_the_first():
    nodes = [node("a"), node("b"), node("c", alive=False)]
    assert place_vault(nodes, "a", needed=True) == "b"
    assert place_vault(nodes, "b", needed=False) == "a"


def test_machines_with_gpus_are_left_to_engines():
    nodes = [node("gpu-1", 1), node("cpu", 0), node("gpu-2", 8)]
    assert place_vault(nodes, None, needed=False) == "cpu"
    assert place_vault(nodes, "gpu-1", needed=True) == "cpu"
    assert place_vault(nodes, "cpu", needed=True) in ("gpu-1", "gpu-2")

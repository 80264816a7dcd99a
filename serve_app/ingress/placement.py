"""In which order engine replicas are offered a new session. Pure: `router` applies it on Serve, simulations without."""

from collections.abc import Callable, Iterable


class Placement:
    """Fills the replicas that came first, so that the newest, which Serve stops first when it scales in, are empty.

    With `spread` no replica comes before another one. Either way those that refused a session a moment ago come last,
    the latest of them at the very end: so each of a full house is asked in its turn, and none is forgotten.
    """

    def __init__(self, *, spread: bool = False) -> None:
        self._spread = spread
        self._oldest_first: dict[str, None] = {}

    def update(self, names: Iterable[str]) -> None:
        """Take the names of all replicas that there are now."""
        now = dict.fromkeys(names)
        kept = {name: None for name in self._oldest_first if name in now}
        self._oldest_first = kept | now

    def ranks(self, names: Iterable[str], refused_at: Callable[[str], float | None]) -> list[list[str]]:
        """These replicas in ranks, the best one first; within a rank, the one with the fewest sessions is best.

        `refused_at` tells when a replica refused a session, None unless it was a moment ago.
        """
        asked = dict.fromkeys(names)
        # Who is not announced yet is the newest.
        ordered = [name for name in self._oldest_first if name in asked]
        ordered += [name for name in asked if name not in self._oldest_first]
        late = {name: at for name in ordered if (at := refused_at(name)) is not None}
        free = [name for name in ordered if name not in late]
        ranks = [free] if self._spread and free else [[name] for name in free]
        return ranks + [[name] for name in sorted(late, key=late.__getitem__)]

"""In which order engine replicas are offered a new session. Pure: `router` applies it on Serve, simulations without."""

from collections.abc import Callable, Iterable, Sequence
from itertools import count


class Placement:
    """Fills the replicas that came first, so that the newest, which Serve stops first when it scales in, are empty.

    With `spread` no replica comes before another one. Either way one that refused a session a moment ago comes last.
    """

    def __init__(self, *, spread: bool = False) -> None:
        self._spread = spread
        self._numbers = count()
        self._arrival: dict[str, int] = {}

    def update(self, names: Iterable[str]) -> None:
        """Take the names of all replicas that there are now."""
        self._arrival = {name: self._arrival[name] if name in self._arrival else next(self._numbers) for name in names}

    def ranks(self, names: Sequence[str], has_refused: Callable[[str], bool]) -> list[list[str]]:
        """These replicas in ranks, the best one first; within a rank, the one with the fewest sessions is best."""
        refused = {name: has_refused(name) for name in names}
        if self._spread:
            ranks = ([name for name in names if refused[name] == last] for last in (False, True))
            return [rank for rank in ranks if rank]
        newest = len(self._arrival) and max(self._arrival.values()) + 1
        return [[name] for name in sorted(names, key=lambda name: (refused[name], self._arrival.get(name, newest)))]

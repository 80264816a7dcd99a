"""In which order engine replicas are offered a new session. Pure: `router` applies it on Serve, simulations without."""

from collections.abc import Callable, Iterable


class Placement:
    """Fills the replicas that came first, so that the newest, which Serve stops first when it scales in, are empty.

    With `spread` no replica comes before another one. Either way one that refused a session a moment ago comes last.
    """

    def __init__(self, *, spread: bool = False) -> None:
        self._spread = spread
        self._oldest_first: dict[str, None] = {}

    def update(self, names: Iterable[str]) -> None:
        """Take the names of all replicas that there are now."""
        now = dict.fromkeys(names)
        kept = {name: None for name in self._oldest_first if name in now}
        self._oldest_first = kept | now

    def ranks(self, names: Iterable[str], has_refused: Callable[[str], bool]) -> list[list[str]]:
        """These replicas in ranks, the best one first; within a rank, the one with the fewest sessions is best."""
        asked = dict.fromkeys(names)
        # Who is not announced yet is the newest.
        ordered = [name for name in self._oldest_first if name in asked]
        ordered += [name for name in asked if name not in self._oldest_first]
        late = {name for name in ordered if has_refused(name)}
        groups = [name for name in ordered if name not in late], [name for name in ordered if name in late]
        if self._spread:
            return [group for group in groups if group]
        return [[name] for group in groups for name in group]

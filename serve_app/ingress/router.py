"""How Serve chooses an engine replica for a session, and how the ingress hears that one is being stopped."""

from ray.serve._private.request_router.common import PendingRequest
from ray.serve._private.request_router.replica_wrapper import RunningReplica
from ray.serve.request_router import FIFOMixin, RequestRouter


class OldestFirstRouter(FIFOMixin, RequestRouter):
    """Fills the replicas that came first, so that the newest, which Serve stops first when it scales in, are empty.

    With `placement="spread"` the replica with the fewest sessions comes first. Either way a replica that refused a
    session a moment ago comes last.
    """

    def initialize_state(self, placement: str = "oldest") -> None:
        """Take the `request_router_kwargs` of the deployment."""
        self._spread = placement == "spread"
        self._order: dict[str, int] = {}

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Serve's own, and tell the ingress."""
        # Serve pickles this class by value: only an import here finds the module's one instance.
        from serve_app.ingress.replicas import ENGINE_REPLICAS

        super().update_replicas(replicas)
        names = {replica.replica_id.unique_id for replica in replicas}
        self._order = {name: place for name, place in self._order.items() if name in names}
        for replica in replicas:
            self._order.setdefault(replica.replica_id.unique_id, max(self._order.values(), default=0) + 1)
        ENGINE_REPLICAS.update(names)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """All replicas, each a rank of its own: Serve takes the first that is below `max_ongoing_requests`."""
        from serve_app.ingress.replicas import ENGINE_REPLICAS

        def rank(replica: RunningReplica) -> tuple[bool, int]:
            name = replica.replica_id.unique_id
            return ENGINE_REPLICAS.has_refused(name), 0 if self._spread else self._order.get(name, 0)

        ranked = sorted(candidate_replicas, key=rank)
        if not self._spread:
            return [[replica] for replica in ranked]
        # In one rank, Serve itself prefers the replica with the fewest ongoing requests.
        groups: dict[bool, list[RunningReplica]] = {}
        for replica in ranked:
            groups.setdefault(rank(replica)[0], []).append(replica)
        return list(groups.values())

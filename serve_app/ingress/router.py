"""How Serve chooses an engine replica for a session, and how the ingress hears that one is being stopped."""

from ray.serve._private.request_router.common import PendingRequest
from ray.serve._private.request_router.replica_wrapper import RunningReplica
from ray.serve.request_router import FIFOMixin, RequestRouter


class OldestFirstRouter(FIFOMixin, RequestRouter):
    """Offers sessions to the replicas in the order that `serve_app.ingress.placement` says."""

    # Serve pickles this class by value: only an import inside finds a module's one instance.

    def initialize_state(self, placement: str = "oldest") -> None:
        """Take the `request_router_kwargs` of the deployment."""
        from serve_app.ingress.placement import Placement
        from serve_app.ingress.replicas import replicas_of

        self._known = replicas_of(self._deployment_id.name)
        self._placement = Placement(spread=placement == "spread")

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Serve's own, and tell the ingress."""
        super().update_replicas(replicas)
        names = [replica.replica_id.unique_id for replica in replicas]
        self._placement.update(names)
        self._known.update(set(names))

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """All replicas in ranks: Serve takes the first that is below `max_ongoing_requests`.

        In one rank, Serve itself prefers the replica with the fewest ongoing requests.
        """
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        ranks = self._placement.ranks(replicas, self._known.avoided_at)
        return [[replicas[name] for name in rank] for rank in ranks]

"""How every process of the service tells what it does: `logs`, and metrics that Prometheus reads.

Each process counts in a registry of its own (`ingress_metrics`, `engine_metrics`). Every replica posts what it counts
to the service's `board`, so that whichever ingress replica is asked for `/metrics` answers for all (`exposition`).
"""

from serve_app.telemetry.engine_metrics import EngineMetrics
from serve_app.telemetry.ingress_metrics import IngressMetrics
from serve_app.telemetry.logs import configure_logging, get_logger, session_context

__all__ = ["EngineMetrics", "IngressMetrics", "configure_logging", "get_logger", "session_context"]

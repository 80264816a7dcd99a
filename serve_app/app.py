"""The application: an ingress, the engines of each model and the Kafka bridge, wired from one settings object.

serve run serve_config.yaml        here, with a Ray of its own
serve deploy serve_config.yaml     on a running cluster
"""

import secrets
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, HTTPOptions, RequestRouterConfig
from ray.serve.context import _get_global_client
from ray.serve.schema import LoggingConfig

from serve_app import settings as settings_module
from serve_app.autoscaling import Policy
from serve_app.bridges.deployment import BridgeReplica
from serve_app.engine.deployment import CONTROL_CALLS, Engine
from serve_app.ingress.deployment import IngressReplica
from serve_app.ingress.router import OldestFirstRouter
from serve_app.settings import (
    MOST_SLOTS,
    EngineSettings,
    IngressSettings,
    Settings,
    SettingsError,
    bridge_key,
    deployment_of,
)

SESSIONS_PER_INGRESS = 4_096
"""Connections an ingress replica takes at once: more than it can carry, so that the engines' slots are the limit."""

METRICS_SECONDS = 1.0
"""How often ingress and engine replicas tell Serve of their sessions."""

BRIDGE_SHUTDOWN_SECONDS = 30.0
"""How long a bridge may take for its last transaction; what is not committed then, the next one does."""

LOOK_BACK_SECONDS = 5.0
"""The policy is told means over so long."""


def build(args: dict[str, Any]) -> Application:
    """Build the application from the `args` of a Serve config file and the environment. Raises SettingsError."""
    settings = settings_module.from_args(args)
    if (host := listening_host()) is not None:
        settings.auth.check_host(host)
    return wire(settings)


def listening_host() -> str | None:
    """Where the Serve that builds the application listens; None where nothing does yet."""
    options = _http_options()
    return options.host if options else None


def _http_options() -> HTTPOptions | None:
    """Ray (2.60) does not tell them to application builders, but it builds in a task of the cluster Serve runs on."""
    client = _get_global_client(raise_if_no_controller_running=False) if ray.is_initialized() else None
    return client.http_config if client else None


def wire(settings: Settings) -> Application:
    """Bind the ingress to the engines of each model and the bridge, all with what the settings say of them."""
    engines = {
        model: engines_of(served, "engine" if served is settings else deployment_of(model))
        for model, served in settings.served.items()
    }
    ingress = serve.deployment(
        IngressReplica,
        name="ingress",
        **number_of_ingresses(settings.ingress),
        ray_actor_options={"num_cpus": settings.ingress.num_cpus},
        max_ongoing_requests=SESSIONS_PER_INGRESS,
        health_check_period_s=settings.engine.health_check_period_seconds,
        graceful_shutdown_timeout_s=settings.ingress.graceful_shutdown_timeout_seconds,
    )
    return ingress.bind(settings, engines, secrets.token_bytes(32), _bridge(settings))


def engines_of(settings: Settings, name: str) -> Application:
    """Bind the deployment of a model's engines; `settings` are as if it were the only one."""
    engine = settings.engine
    actor_options: dict[str, Any] = {"num_cpus": engine.num_cpus, "num_gpus": engine.reserved_gpus}
    if engine.gpu:
        actor_options["accelerator_type"] = engine.gpu
    engines = serve.deployment(
        Engine,
        name=name,
        **number_of_engines(engine),
        ray_actor_options=actor_options,
        # Where the engine chooses its slots itself, its refusal is the limit: nobody else knows their number yet.
        max_ongoing_requests=(MOST_SLOTS if engine.slots == "auto" else engine.slots) + CONTROL_CALLS,
        # -1: a call that finds every replica full waits and so drives scaling; the ingress bounds the wait itself.
        max_queued_requests=-1,
        request_router_config=RequestRouterConfig(
            request_router_class=OldestFirstRouter, request_router_kwargs={"placement": engine.placement}
        ),
        health_check_period_s=engine.health_check_period_seconds,
        health_check_timeout_s=engine.health_check_timeout_seconds,
        graceful_shutdown_timeout_s=engine.graceful_shutdown_timeout_seconds,
        logging_config=LoggingConfig(enable_access_log=False),  # its calls are the ingress asking, once a second
    )
    return engines.bind(settings)


def _bridge(settings: Settings) -> Application | None:
    """The Kafka bridge, if there is to be one. Raises SettingsError."""
    kafka = settings.kafka
    if kafka is None:
        return None
    key = bridge_key(kafka)
    if settings.auth.required and key is None:
        raise SettingsError(["kafka.service_key: expected an API key, because the service asks for one, got none"])
    options = _http_options() or HTTPOptions()
    host = "127.0.0.1" if options.host in ("0.0.0.0", "::", None) else options.host
    bridge = serve.deployment(
        BridgeReplica,
        name="bridge",
        num_replicas=kafka.replicas,
        ray_actor_options={"num_cpus": kafka.num_cpus},
        health_check_period_s=settings.engine.health_check_period_seconds,
        graceful_shutdown_timeout_s=BRIDGE_SHUTDOWN_SECONDS,
    )
    return bridge.bind(settings, kafka.service_url or f"ws://{host}:{options.port}", key)


def number_of_engines(engine: EngineSettings) -> dict[str, Any]:
    """What Serve is told of how many engine replicas there are to be."""
    if not engine.autoscaling:
        return {"num_replicas": engine.replicas}
    return _scaled(engine.scaling_rules)


def number_of_ingresses(ingress: IngressSettings) -> dict[str, Any]:
    """The same of the ingress."""
    if not ingress.autoscaling:
        return {"num_replicas": ingress.replicas}
    return _scaled(ingress.autoscaling.scaling_rules)


def _scaled(rules: dict[str, Any]) -> dict[str, Any]:
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=rules["min_replicas"],
            max_replicas=rules["max_replicas"],
            # Without initial_replicas: Serve would go back to it at every deploy, whoever is speaking.
            metrics_interval_s=METRICS_SECONDS,
            look_back_period_s=LOOK_BACK_SECONDS,
            # The policy waits by itself: after Serve's delays only the last decision of a window would count.
            upscale_delay_s=0.0,
            downscale_delay_s=0.0,
            policy=AutoscalingPolicy(policy_function=Policy, policy_kwargs=rules),
        )
    }

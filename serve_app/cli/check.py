"""`stt check`: whether a cluster's file and the application's fit together, before anything costs money."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import click
import typer
import yaml

from serve_app import cluster_file
from serve_app.cli import serve_schema
from serve_app.cli.failure import BAD_INPUT, fail
from serve_app.settings import PROJECT_ROOT, EngineSettings, SettingsError, from_args, read_gpus

CLUSTER_CONFIG = PROJECT_ROOT / "cluster" / "serve_config.yaml"


class UnusableFile(Exception):
    """A file is not what it should be; the text names it."""


def check(
    file: Annotated[Path, typer.Argument(help="A file for `ray up`, or a RayService for Kubernetes.")],
    config: Annotated[
        Path, typer.Option(help="Serve's config file that will be deployed there; a RayService has its own.")
    ] = CLUSTER_CONFIG,
) -> None:
    """Say what would keep engines from starting on a cluster: its file, the application's, and GPUs that do not fit."""
    try:
        document = _read(file)
        if document.get("kind") == "RayService":
            # The Secret with the keys is made of the file beside it.
            environ = {"STT_KEYS_FILE": str(file.absolute().with_name("keys.yaml"))}
            engines = _engines(yaml.safe_load(document["spec"]["serveConfigV2"]), f"{file}: serveConfigV2", environ)
        else:
            _check_launcher(document, file)
            engines = _engines(_read(config), str(config), {})
        cluster = cluster_file.read_cluster(document)
    except (UnusableFile, SettingsError) as error:
        fail(error, BAD_INPUT)
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        fail(f"{file}: expected a file for `ray up` or a RayService, got: {error!r}", BAD_INPUT)
    found = cluster_file.problems(cluster, read_gpus(), engines) if cluster else ()
    if wrong := [f"{file}: {problem}" for problem in found]:
        fail("\n".join(wrong), BAD_INPUT)
    most = "; ".join(
        f"up to {engine.most_replicas} engines, each on {engine.gpu or 'any machine'}" for engine in engines.values()
    )
    unseen = "" if cluster else " (the file does not say what GPUs the machines have: not compared)"
    typer.echo(f"{file}: nothing wrong; {most}{unseen}")


def _read(file: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UnusableFile(f"{file}: {error}") from None
    if not isinstance(document, dict):
        raise UnusableFile(f"{file}: expected a mapping, got {document!r}")
    return document


def _engines(document: Mapping[str, Any], origin: str, environ: Mapping[str, str]) -> dict[str, EngineSettings]:
    """The settings of each model's engines in one of Serve's config files, by their key there.

    Raises UnusableFile, SettingsError.
    """
    if wrong := serve_schema.problems(document):
        raise UnusableFile("\n".join(f"{origin}: {problem}" for problem in wrong))
    if len(document["applications"]) != 1:
        raise UnusableFile(f"{origin}: applications: expected one application, got {len(document['applications'])}")
    settings = from_args(document["applications"][0].get("args") or {}, environ, origin)
    settings.auth.check_host((document.get("http_options") or {}).get("host", "0.0.0.0"))
    further = {f"models[{number}].engine": model.engine for number, model in enumerate(settings.models)}
    return {"engine": settings.engine, **further}


def _check_launcher(document: Mapping[str, Any], file: Path) -> None:
    """Ray's own validation, as `ray up` begins with it. Raises UnusableFile."""
    import jsonschema  # type: ignore[import-untyped]  # a second, which no other command needs
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray.autoscaler").setLevel(logging.WARNING)
    try:
        validate_config(prepare_config(dict(document)))
    except jsonschema.ValidationError as error:
        raise UnusableFile(f"{file}: {error.json_path.removeprefix('$.')}: {error.message}") from None
    except click.ClickException as error:
        raise UnusableFile(f"{file}: {error.message}") from None
    except (ValueError, RuntimeError) as error:
        raise UnusableFile(f"{file}: {error}") from None

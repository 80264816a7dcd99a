"""`stt check`, and what it knows of clusters' files."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from serve_app.cli.main import app
from serve_app.cluster_file import Group, groups, problems
from serve_app.settings import EngineSettings, read_gpus
from tests.support import PROJECT

LAUNCHER = {
    "cluster_name": "here",
    "provider": {"type": "aws", "region": "us-east-1"},
    "max_workers": 4,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 4}, "node_config": {}},
        "l4": {
            "min_workers": 0,
            "max_workers": 3,
            "resources": {"CPU": 1, "GPU": 1, "accelerator_type:L4": 1},
            "node_config": {},
        },
    },
}


def l4(**changes: Any) -> Group:
    return Group(**({"place": "l4", "least": 0, "most": 3, "gpus": 1, "types": ("L4",)} | changes))


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """The application for clusters, with a key."""
    config = yaml.safe_load((PROJECT / "cluster" / "serve_config.yaml").read_text())
    args = config["applications"][0]["args"]
    args["engine"]["autoscaling"]["max_replicas"] = 3
    args["auth"]["keys_file"] = str(add_key(tmp_path))
    return write(tmp_path / "serve_config.yaml", config)


def add_key(folder: Path) -> Path:
    assert CliRunner().invoke(app, ["keys", "add", "alice", "--file", str(folder / "keys.yaml")]).exit_code == 0
    return folder / "keys.yaml"


def write(path: Path, document: Any) -> Path:
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def check(file: Path, *options: object) -> Result:
    return CliRunner().invoke(app, ["check", str(file), *map(str, options)])


@pytest.mark.parametrize(
    ("group", "engine", "expected"),
    [
        (l4(least=4), {"gpu": "L4"}, "l4: expected a minimum of at most the maximum (3), got 4"),
        (l4(types=()), {}, "l4: expected a resource accelerator_type:NAME beside its GPUs, got none"),
        (l4(types=("L44",)), {}, "l4: accelerator_type:L44: expected one of T4, L4, "),
        (l4(), {"gpu": "H100"}, "engine.gpu: expected one of L4, which the cluster has, got H100"),
        (l4(most=0), {"gpu": "L4"}, "engine.gpu: expected a group with L4 that may have machines, got a maximum of 0"),
        (l4(), {"gpu": "L4", "replicas": 4}, "engine: expected at most 3 GPUs for all engines, which is what the "),
        (l4(), {"device": "cuda", "replicas": 4}, "engine: expected at most 3 GPUs for all engines"),
    ],
)
def test_what_would_keep_engines_from_starting(group: Group, engine: dict[str, Any], expected: str):
    (problem,) = problems([group], read_gpus(), EngineSettings(**engine))
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    "engine",
    [
        {"gpu": "L4", "replicas": 3},
        {"gpu": "L4", "num_gpus": 0.5, "replicas": 6},
        {"gpu": "L4", "autoscaling": {"max_replicas": 3}},
        {"replicas": 9},
    ],
)
def test_what_fits(engine: dict[str, Any]):
    assert not list(problems([l4()], read_gpus(), EngineSettings(**engine)))


def test_models_share_the_machines():
    two = EngineSettings(gpu="L4", replicas=2)
    (problem,) = problems([l4()], read_gpus(), two, two, EngineSettings())
    assert problem.startswith(
        "engine: expected at most 3 GPUs for all engines, which is what the cluster may have of L4"
    )


def test_machines_whose_gpus_ray_finds_itself_are_not_judged():
    assert not groups({"provider": {"type": "local"}})
    assert not list(problems([], read_gpus(), EngineSettings(gpu="H100")))


def test_the_whole_cluster_has_a_maximum_too():
    document = copy.deepcopy(LAUNCHER) | {"max_workers": 1}
    (group,) = groups(document)
    assert group.most == 1


def test_files_that_fit_together(application: Path, tmp_path: Path):
    told = check(write(tmp_path / "cluster.yaml", LAUNCHER), "--config", application)
    assert told.exit_code == 0, told.output
    assert "nothing wrong; up to 3 engines, each on L4" in told.output


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml", "local.yaml"])
def test_our_files_fit_together(name: str, tmp_path: Path):
    config = yaml.safe_load((PROJECT / "cluster" / "serve_config.yaml").read_text())
    config["applications"][0]["args"]["auth"]["keys_file"] = str(add_key(tmp_path))
    told = check(PROJECT / "cluster" / name, "--config", write(tmp_path / "serve_config.yaml", config))
    assert told.exit_code == 0, told.output


def test_azure_has_no_l4_and_says_what_it_has(application: Path):
    told = check(PROJECT / "cluster" / "azure.yaml", "--config", application)
    assert told.exit_code == 2
    assert "azure.yaml: engine.gpu: expected one of A100, H100, which the cluster has, got L4" in told.output


def test_a_rayservice_is_checked_with_the_application_in_it_and_the_keys_beside_it(tmp_path: Path):
    document = yaml.safe_load((PROJECT / "cluster" / "kuberay" / "rayservice.yaml").read_text())
    file = write(tmp_path / "rayservice.yaml", document)
    without = check(file)
    assert (without.exit_code, "keys.yaml: expected a readable file" in without.output) == (2, True)
    add_key(tmp_path)
    assert check(file).exit_code == 0
    worker = document["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]
    worker["resources"] = {"CPU": "1", "GPU": "1", "accelerator_type:L44": "1"}
    told = check(write(file, document))
    assert told.exit_code == 2
    assert "workerGroupSpecs[1]: accelerator_type:L44: expected one of" in told.output
    document["spec"]["serveConfigV2"] = document["spec"]["serveConfigV2"].replace("slots: 98", "slots: 980")
    told = check(write(file, document))
    assert "serveConfigV2: engine.slots: expected at most 173 for stt-1b-en_fr in the 24 GB of an L4" in told.output


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"provider": {"type": "nimbus"}}, "Unsupported node provider: nimbus"),
        ({"max_wrokers": 3}, "'max_wrokers' was unexpected"),
        ({"head_node_type": "haed"}, "`head_node_type` must be one of `available_node_types`"),
        ({"provider": {"type": "local"}, "available_node_types": None}, "Please supply a `head_ip`"),
    ],
)
def test_what_ray_itself_refuses(change: dict[str, Any], expected: str, application: Path, tmp_path: Path):
    document = {key: value for key, value in (copy.deepcopy(LAUNCHER) | change).items() if value is not None}
    told = check(write(tmp_path / "cluster.yaml", document), "--config", application)
    assert told.exit_code == 2
    assert expected in told.output
    assert str(tmp_path / "cluster.yaml") in told.output


@pytest.mark.parametrize("text", ["", "- a", "a: [", "applications: []", "kind: RayService"])
def test_what_is_no_clusters_file(text: str, tmp_path: Path):
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    told = check(file)
    assert told.exit_code == 2
    assert f"stt: {file}: " in told.output
    assert "Traceback" not in told.output


def test_a_minimum_above_the_maximum_in_the_application(application: Path, tmp_path: Path):
    config = yaml.safe_load(application.read_text())
    config["applications"][0]["args"]["engine"]["autoscaling"] = {"min_replicas": 5, "max_replicas": 3}
    told = check(write(tmp_path / "cluster.yaml", LAUNCHER), "--config", write(application, config))
    assert told.exit_code == 2
    assert "engine.autoscaling.min_replicas: expected at most max_replicas (3), got 5" in told.output

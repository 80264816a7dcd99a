"""`stt check`, and what it knows of clusters' files."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from serve_app.cli.main import app
from serve_app.cluster_file import Cluster, Group, problems, read_cluster
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


def machines(*workers: Group, head: Group | None = None, most: int | None = None) -> Cluster:
    return Cluster(head or Group("head", 1, 1, 8, 0, ()), workers, most)


def l4(**changes: Any) -> Group:
    return Group(**({"place": "l4", "least": 0, "most": 3, "cpus": 8, "gpus": 1, "types": ("L4",)} | changes))


def found(cluster: Cluster, *engines: dict[str, Any]) -> list[str]:
    asked = {f"models[{number}].engine": EngineSettings(**engine) for number, engine in enumerate(engines)}
    return list(problems(cluster, read_gpus(), asked))


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
        (l4(least=4), {}, "l4: expected a minimum of at most the maximum (3), got 4: lower the one, or raise"),
        (l4(types=()), {}, "l4: expected a resource accelerator_type:NAME beside its GPUs, got none: add it"),
        (l4(types=("L44",)), {}, "l4: accelerator_type:L44: expected one of T4, L4, "),
        (l4(), {"gpu": "H100"}, ".gpu: expected one of L4, which the cluster has, got H100: choose one of those, or"),
        (l4(gpus=0, types=()), {"device": "cuda"}, ": expected a group with GPUs, got none with any GPU: add one, or"),
        (
            l4(gpus=0, types=()),
            {"gpu": "L4"},
            ": expected a group with L4, got none with any GPU: add one, or",
        ),
        (
            l4(most=0),
            {"gpu": "L4"},
            ".gpu: expected a group with L4 that may have machines, got a maximum of 0 (l4)",
        ),
        (l4(), {"gpu": "L4", "replicas": 4}, ": expected at most 3 engines (GPUs: 1, CPUs: 1), which is what fits on "),
        (l4(), {"device": "cuda", "replicas": 4}, ": expected at most 3 engines (GPUs: 1, CPUs: 1), which is what "),
        (l4(), {"gpu": "L4", "num_gpus": 2}, ".num_gpus: expected at most 1, the GPUs of a machine with L4, got 2: an"),
        (l4(gpus=3), {"gpu": "L4", "num_gpus": 2, "replicas": 4}, ": expected at most 3 engines (GPUs: 2, CPUs: 1)"),
        (l4(gpus=2), {"gpu": "L4", "num_gpus": 0.6, "replicas": 7}, ": expected at most 6 engines (GPUs: 0.6, "),
        (
            l4(cpus=1),
            {"gpu": "L4", "num_gpus": 0.5, "replicas": 4},
            ": expected at most 3 engines (GPUs: 0.5, ",
        ),
        (l4(cpus=1), {"gpu": "L4", "num_cpus": 2}, ".num_cpus: expected at most 1, the CPUs of a machine with L4, got"),
    ],
)
def test_what_would_keep_engines_from_starting(group: Group, engine: dict[str, Any], expected: str):
    (problem,) = found(machines(group), engine)
    assert problem.removeprefix("models[0].engine").startswith(expected)


@pytest.mark.parametrize(
    "engine",
    [
        {"gpu": "L4", "replicas": 3},
        {"gpu": "L4", "num_gpus": 0.5, "replicas": 6},
        {"gpu": "L4", "num_gpus": 0.333333, "replicas": 9},
        {"gpu": "L4", "autoscaling": {"max_replicas": 3}},
        {"gpu": "L4", "num_cpus": 0, "replicas": 3},
        {"replicas": 9},
    ],
)
def test_what_fits(engine: dict[str, Any]):
    assert not found(machines(l4()), engine)


def test_models_share_the_machines():
    two = {"gpu": "L4", "replicas": 2}
    (problem,) = found(machines(l4()), two, two, {})
    assert problem.startswith(
        "engine, models: expected at most 3 GPUs for the engines of all models, which is what the cluster may have of L"
    )
    (problem,) = found(machines(l4()), two, {"device": "cuda", "replicas": 2})
    assert "may have of any type, got 4: fewer engines" in problem


def test_groups_share_the_machines_that_the_whole_cluster_may_have():
    one, eight = l4(most=4), l4(place="l4-8", most=1, gpus=8)
    assert not found(machines(one, eight, most=3), {"gpu": "L4", "replicas": 10})
    (problem,) = found(machines(one, eight, most=3), {"gpu": "L4", "replicas": 11})
    assert ": expected at most 10 engines" in problem


def test_machines_that_always_run_leave_the_others_fewer():
    plain = l4(place="plain", least=2, most=4, gpus=0, types=())
    assert not found(machines(l4(), plain, most=4), {"gpu": "L4", "replicas": 2})
    (problem,) = found(machines(l4(), plain, most=4), {"gpu": "L4", "replicas": 3})
    assert ": expected at most 2 engines" in problem


def test_the_heads_gpus_count_and_its_machine_is_not_among_the_workers():
    head = l4(place="head", least=1, most=1, gpus=2)
    assert not found(machines(l4(), head=head, most=1), {"gpu": "L4", "replicas": 3})
    (problem,) = found(machines(l4(), head=head, most=1), {"gpu": "L4", "replicas": 4})
    assert ": expected at most 3 engines" in problem


@pytest.mark.parametrize(
    "document",
    [
        {"provider": {"type": "local"}},
        LAUNCHER | {"available_node_types": {"head": {"node_config": {}}, "l4": {"node_config": {}}}},
    ],
)
def test_machines_whose_gpus_ray_finds_itself_are_not_judged(document: dict[str, Any]):
    assert read_cluster(document) is None


def test_a_launchers_file_in_rays_own_words():
    document = copy.deepcopy(LAUNCHER) | {"max_workers": 2}
    document["available_node_types"]["head"] |= {"max_workers": 1, "resources": {"GPU": 1, "accelerator_type:L4": 1}}
    cluster = read_cluster(document)
    assert cluster is not None
    assert cluster.head == Group("available_node_types.head", 1, 1, float("inf"), 1, ("L4",))
    assert [(group.least, group.most, group.gpus) for group in cluster.workers] == [(0, 1, 1), (0, 2, 1)]
    assert cluster.most_workers == 2


def pods(head: dict[str, Any], *groups: dict[str, Any], grows: bool = True) -> Cluster:
    """A RayService of pods that ask for nothing but these `resources` of their containers; the rest is as said."""

    def group(said: dict[str, Any]) -> dict[str, Any]:
        limits = {"cpu": "2", **said.get("limits", {})}
        template = {"spec": {"containers": [{"resources": {"limits": limits}}]}}
        return {"template": template, **{key: value for key, value in said.items() if key != "limits"}}

    workers = [group(said) | {"groupName": str(number)} for number, said in enumerate(groups)]
    spec = {"enableInTreeAutoscaling": grows, "headGroupSpec": group(head), "workerGroupSpecs": workers}
    cluster = read_cluster({"kind": "RayService", "spec": {"rayClusterConfig": spec}})
    assert cluster is not None
    return cluster


def test_kuberays_defaults_are_none_at_least_and_any_number_at_most():
    (group,) = pods({}, {}).workers
    assert (group.least, group.most) == (0, 2**31 - 1)
    (group,) = pods({}, {"minReplicas": 1, "maxReplicas": 3, "numOfHosts": 2}).workers
    assert (group.least, group.most) == (2, 6)


def test_without_rays_autoscaler_there_are_as_many_pods_as_the_file_says():
    said = [{"replicas": 2}, {"replicas": 2, "minReplicas": 3}, {"replicas": 9, "maxReplicas": 4}, {}]
    assert [group.most for group in pods({}, *said, grows=False).workers] == [2, 3, 4, 0]


def test_a_pods_gpus_are_what_its_container_asks_for_unless_the_group_says_more():
    cluster = pods(
        {"limits": {"nvidia.com/gpu": "1"}},
        {"limits": {"nvidia.com/gpu": "2"}},
        {"limits": {"nvidia.com/gpu": "2"}, "rayStartParams": {"num-gpus": "4"}},
        {"limits": {"nvidia.com/gpu": "2"}, "resources": {"CPU": "3", "GPU": "8", "accelerator_type:L4": "1"}},
    )
    assert [(group.cpus, group.gpus, group.types) for group in cluster.groups] == [
        (2, 1, ()), (2, 2, ()), (2, 4, ()), (3, 8, ("L4",)),
    ]  # fmt: skip


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
    assert "azure.yaml: engine.gpu: expected one of A100, H100, which the cluster has, got L4: choose" in told.output


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


@pytest.mark.parametrize("number", [0, 2])
def test_any_number_of_applications_but_one(number: int, application: Path, tmp_path: Path):
    config = yaml.safe_load(application.read_text())
    (one,) = config["applications"]
    config["applications"] = [one | {"name": f"stt-{n}", "route_prefix": f"/{n}"} for n in range(number)]
    told = check(write(tmp_path / "cluster.yaml", LAUNCHER), "--config", write(application, config))
    assert told.exit_code == 2
    assert f"applications: expected one application, got {number}" in told.output


def test_a_minimum_above_the_maximum_in_the_application(application: Path, tmp_path: Path):
    config = yaml.safe_load(application.read_text())
    config["applications"][0]["args"]["engine"]["autoscaling"] = {"min_replicas": 5, "max_replicas": 3}
    told = check(write(tmp_path / "cluster.yaml", LAUNCHER), "--config", write(application, config))
    assert told.exit_code == 2
    assert "engine.autoscaling.min_replicas: expected at most max_replicas (3), got 5" in told.output

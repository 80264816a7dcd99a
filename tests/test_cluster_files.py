"""Every file in `cluster/` that a tool reads: by that tool or its schema, and by what the files must agree on."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from typer.testing import CliRunner

from serve_app import settings as settings_module
from serve_app.cli import serve_schema
from serve_app.cli.main import app
from serve_app.settings import IngressSettings, SessionSettings, Settings, SettingsError, read_gpus
from tests.support import PROJECT
from tests.system_packages import require_program

CLUSTER = PROJECT / "cluster"
CLOUDS = [CLUSTER / f"{name}.yaml" for name in ("aws", "gcp", "azure")]
LAUNCHERS = [*CLOUDS, CLUSTER / "local.yaml"]
SERVE_CONFIGS = [CLUSTER / "serve_config.yaml", CLUSTER / "workstation.yaml"]
PORT = 8000
HAPROXY_FILES = 10_276
"""Open files that Serve's HAProxy wants; with fewer it does not start."""

KUBERNETES = ("1.29", "1.34")
"""Versions to be valid for: the oldest that clouds still run, and a new one."""


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys.yaml"
    assert CliRunner().invoke(app, ["keys", "add", "alice", "--file", str(file)]).exit_code == 0
    return file


@pytest.fixture
def kuberay(tmp_path: Path, keys_file: Path) -> list[dict[str, Any]]:
    """What `kubectl apply --kustomize cluster/kuberay` sends, once there is a key."""
    folder = Path(shutil.copytree(CLUSTER / "kuberay", tmp_path / "kuberay"))
    shutil.copy(keys_file, folder / "keys.yaml")
    command = [require_program("kubectl", "kubernetes-client"), "kustomize", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return list(yaml.safe_load_all(made.stdout))


@pytest.fixture
def service(kuberay: list[dict[str, Any]]) -> dict[str, Any]:
    (one,) = [resource for resource in kuberay if resource["kind"] == "RayService"]
    return one


def templates(service: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The pods' specifications, by group."""
    cluster = service["spec"]["rayClusterConfig"]
    workers = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"], **workers}


def engine_groups(service: dict[str, Any]) -> dict[str, dict[str, Any]]:
    groups = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return {group["groupName"]: group for group in groups if group["groupName"] != "ingress"}


def settings_of(config: dict[str, Any], keys_file: Path) -> Settings:
    return settings_module.from_args(config["applications"][0]["args"], {"STT_KEYS_FILE": str(keys_file)})


@pytest.mark.parametrize("file", LAUNCHERS, ids=lambda file: file.stem)
def test_rays_launcher_takes_the_file(file: Path):
    validate_config(prepare_config(read(file)))


@pytest.mark.parametrize("file", LAUNCHERS, ids=lambda file: file.stem)
def test_every_machine_runs_serve_behind_haproxy_with_the_mounted_configuration(file: Path):
    config = read(file)
    assert {"--env RAY_SERVE_ENABLE_HA_PROXY=1", "--ulimit nofile=65536:65536"} <= {*config["docker"]["run_options"]}
    assert config["file_mounts"] == {"/opt/stt/cluster": "cluster"}  # PROJECT_ROOT of the image: keys_file is found
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        assert shlex.split(command)[:2] in (["ray", "start"], ["ray", "stop"])


@pytest.mark.parametrize("file", CLOUDS, ids=lambda file: file.stem)
def test_a_clouds_gpus_come_and_go_and_have_names_that_we_know(file: Path):
    config = read(file)
    workers = {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}
    assert "GPU" not in config["available_node_types"][config["head_node_type"]]["resources"]
    for name, kind in workers.items():
        (accelerator,) = [key for key in kind["resources"] if key.startswith("accelerator_type:")]
        accelerator = accelerator.removeprefix("accelerator_type:")
        read_gpus().gpu(accelerator)
        assert name.removesuffix("-spot") == accelerator.lower()
        assert kind["min_workers"] == 0
        assert kind["resources"]["CPU"] == kind["resources"]["GPU"]  # engines, and nothing beside them
        assert name.endswith("-spot") == ("spot" in str(kind["node_config"]).lower())
    assert {name for name in workers if not name.endswith("-spot")} | {"h100"} >= {"a100", "h100"}


@pytest.mark.parametrize("file", SERVE_CONFIGS, ids=lambda file: file.stem)
def test_serve_and_we_take_the_applications_configuration(file: Path, keys_file: Path):
    config = read(file)
    assert not serve_schema.problems(config)
    assert config["http_options"]["port"] == PORT
    settings = settings_of(config, keys_file)
    settings.auth.check_host(config["http_options"]["host"])
    gpu, model = settings.engine.gpu, settings.model
    if gpu:
        assert settings.engine.slots == read_gpus().gpus[gpu].capacity[model].slots


def test_a_cluster_without_keys_is_refused_with_the_file_that_is_missing(tmp_path: Path):
    config = read(CLUSTER / "serve_config.yaml")
    assert config["http_options"]["host"] == "0.0.0.0"
    missing = tmp_path / "keys.yaml"
    with pytest.raises(SettingsError, match=re.escape(str(missing))):
        settings_of(config, missing)
    del config["applications"][0]["args"]["auth"]["keys_file"]
    with pytest.raises(SettingsError, match="expected at least one here or in auth"):
        settings_module.from_args(config["applications"][0]["args"], {})


def test_kubernetes_takes_what_kustomize_makes(kuberay: list[dict[str, Any]]):
    schema = json.loads((PROJECT / "tests" / "data" / "rayservice.schema.json").read_text())
    checked = []
    for resource in kuberay:
        if resource["kind"] == "RayService":
            jsonschema.Draft202012Validator(schema).validate(resource)
        else:
            for version in KUBERNETES:
                kubernetes_validate.validate(resource, version, strict=True)
        checked.append(resource["kind"])
    assert sorted(set(checked)) == [
        "Ingress", "Namespace", "NetworkPolicy", "PersistentVolumeClaim", "PodDisruptionBudget", "RayService",
        "Secret", "Service",
    ]  # fmt: skip


def test_kubernetes_takes_the_pods_that_kuberay_will_make(service: dict[str, Any]):
    for name, template in templates(service).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name} | template["metadata"]}
        for version in KUBERNETES:
            kubernetes_validate.validate(pod | {"spec": template["spec"]}, version, strict=True)


def test_the_schema_of_a_rayservice_finds_mistakes(service: dict[str, Any]):
    schema = json.loads((PROJECT / "tests" / "data" / "rayservice.schema.json").read_text())
    service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.Draft202012Validator(schema).validate(service)


def test_rays_autoscaler_reads_the_groups_as_they_are_meant(service: dict[str, Any]):
    cluster = {"metadata": {"name": "stt", "namespace": "stt"}, "spec": service["spec"]["rayClusterConfig"]}
    made = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    assert made["headgroup"]["resources"]["CPU"] == 0
    for name, group in engine_groups(service).items():
        kind = made[name]
        assert (kind["min_workers"], kind["max_workers"]) == (group["minReplicas"], group["maxReplicas"]) == (0, 10)
        assert (kind["resources"]["CPU"], kind["resources"]["GPU"]) == (1, 1)
        (accelerator,) = [key for key in kind["resources"] if key.startswith("accelerator_type:")]
        assert accelerator.removeprefix("accelerator_type:") in read_gpus().gpus


def test_the_service_on_kubernetes_is_the_one_on_other_clusters(service: dict[str, Any], keys_file: Path):
    ours, theirs = read(CLUSTER / "serve_config.yaml"), yaml.safe_load(service["spec"]["serveConfigV2"])
    assert not serve_schema.problems(theirs)
    assert theirs["http_options"] == ours["http_options"]
    ours["applications"][0]["args"]["auth"].pop("keys_file")
    assert theirs["applications"] == ours["applications"]
    assert settings_of(theirs, keys_file).auth.required


def test_every_pod_is_behind_haproxy_with_keys_and_without_root(service: dict[str, Any]):
    (keys,) = {
        mount["mountPath"]
        for template in templates(service).values()
        for mount in template["spec"]["containers"][0]["volumeMounts"]
        if mount["name"] == "keys"
    }
    for name, template in templates(service).items():
        (container,) = template["spec"]["containers"]
        environment = {one["name"]: one["value"] for one in container["env"]}
        assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "1", name
        assert environment["STT_KEYS_FILE"] == f"{keys}/keys.yaml"
        assert template["spec"]["securityContext"]["runAsNonRoot"]
        assert {"name": "serve", "containerPort": PORT} in container["ports"]
        assert {"livenessProbe", "readinessProbe"} <= container.keys()


def test_pods_wait_longer_than_their_replicas_drain(service: dict[str, Any]):
    haproxys_drain_s = 35  # measured, shared/facts
    defaults = Settings()
    longest = max(
        defaults.engine.graceful_shutdown_timeout_seconds,
        defaults.ingress.graceful_shutdown_timeout_seconds + haproxys_drain_s,
    )
    for name, template in templates(service).items():
        if name == "head":
            continue
        (container,) = template["spec"]["containers"]
        command = container["lifecycle"]["preStop"]["exec"]["command"][-1]
        (deadline,) = re.findall(r"--deadline-remaining-seconds (\d+); sleep (\d+)$", command)
        assert deadline[0] == deadline[1]
        assert longest < int(deadline[0]) < template["spec"]["terminationGracePeriodSeconds"], name


def test_clients_come_in_where_the_ingress_replicas_are(kuberay: list[dict[str, Any]], service: dict[str, Any]):
    by_kind = {resource["kind"]: resource for resource in kuberay}
    labels = {name: template["metadata"]["labels"] for name, template in templates(service).items()}

    def selected(selector: dict[str, str]) -> set[str]:
        return {name for name, mine in labels.items() if selector.items() <= mine.items()}

    assert selected(by_kind["Service"]["spec"]["selector"]) == {"ingress"}
    assert selected(by_kind["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]) == set(labels)
    budgets = [one for one in kuberay if one["kind"] == "PodDisruptionBudget"]
    covered = [selected(one["spec"]["selector"]["matchLabels"]) for one in budgets]
    assert sorted(map(sorted, covered)) == sorted([["head"], ["ingress"], sorted(engine_groups(service))])
    assert by_kind["Service"]["spec"]["ports"] == [{"name": "serve", "port": PORT, "targetPort": "serve"}]
    (rule,) = by_kind["Ingress"]["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert path["backend"]["service"] == {"name": by_kind["Service"]["metadata"]["name"], "port": {"name": "serve"}}


def test_the_ingress_is_more_patient_than_any_session(kuberay: list[dict[str, Any]]):
    (ingress,) = [resource for resource in kuberay if resource["kind"] == "Ingress"]
    annotations = ingress["metadata"]["annotations"]
    for way in ("read", "send"):
        patience_s = float(annotations[f"nginx.ingress.kubernetes.io/proxy-{way}-timeout"])
        assert patience_s >= SessionSettings().max_session_seconds
    assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == f"{IngressSettings().max_upload_megabytes}m"


def test_without_a_key_nothing_is_sent_to_kubernetes(tmp_path: Path):
    without_keys = shutil.ignore_patterns("keys.yaml")
    folder = Path(shutil.copytree(CLUSTER / "kuberay", tmp_path / "kuberay", ignore=without_keys))
    command = [require_program("kubectl", "kubernetes-client"), "kustomize", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert made.returncode != 0
    assert "keys.yaml" in made.stderr


def test_systemd_takes_the_unit(tmp_path: Path):
    analyze = require_program("systemd-analyze", "systemd")
    text = (CLUSTER / "proxmox" / "stt.service").read_text()
    assert "\nExecStartPost=/opt/stt/.venv/bin/stt smoke --url " in text
    # The tool wants the programs to be there, and this machine has them elsewhere.
    unit = tmp_path / "stt.service"
    unit.write_text(text.replace("/opt/stt/.venv/bin/stt", str(Path(sys.executable).with_name("stt"))))
    done = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, check=False, timeout=60)
    about_ours = [line for line in done.stderr.splitlines() if "stt.service" in line or str(unit) in line]
    assert (done.returncode, about_ours) == (0, []), done.stderr


def test_the_units_commands_are_ours():
    """Options that a command does not have would be known only when the machine boots."""
    text = (CLUSTER / "proxmox" / "stt.service").read_text()
    (serve,) = re.findall(r"^ExecStart=\S+/stt (.*)$", text, re.MULTILINE)
    (smoke,) = re.findall(r"^ExecStartPost=\S+/stt (.*)$", text, re.MULTILINE)
    for words in (shlex.split(serve), shlex.split(smoke)):
        told = CliRunner().invoke(app, [words[0], "--help"]).output
        assert all(word in told for word in words if word.startswith("--")), words
    config = shlex.split(serve)[shlex.split(serve).index("--config") + 1]
    assert (PROJECT / config).is_file()
    assert f":{PORT} " in smoke
    (files,) = re.findall(r"^LimitNOFILE=(\d+)$", text, re.MULTILINE)
    assert int(files) > HAPROXY_FILES


def test_the_dockerfile_is_clean():
    hadolint = Path(sys.executable).with_name("hadolint")
    file = CLUSTER / "docker" / "Dockerfile"
    done = subprocess.run([hadolint, "--no-color", str(file)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout


def test_the_image_serves_as_somebody_without_rights_and_tells_its_health():
    text = (CLUSTER / "docker" / "Dockerfile").read_text()
    lines = [line.split(maxsplit=1) for line in text.splitlines() if re.match(r"[A-Z]+ ", line)]
    said = dict(lines)
    assert said["USER"] == "1000:1000"
    assert said["EXPOSE"] == str(PORT)
    assert "RAY_SERVE_ENABLE_HA_PROXY=1" in text
    (probe,) = re.findall(r"HEALTHCHECK.*\\\n +CMD (\[.*\])", text)
    assert ast.literal_eval(probe)[-1] == f"http://127.0.0.1:{PORT}/readyz"
    assert ast.literal_eval(said["CMD"])[:2] == ["stt", "serve"]


def test_the_image_is_made_of_nothing_but_what_it_copies():
    """What the Dockerfile copies is in the context, and no secret is."""
    text = (CLUSTER / "docker" / "Dockerfile").read_text()
    sources = {
        source for line in re.findall(r"^COPY --chown=\S+ (.+) \S+$", text, re.MULTILINE) for source in line.split()
    }
    ignored = (PROJECT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == sources
    assert all((PROJECT / source).exists() for source in sources)
    assert "**/keys.yaml" in ignored


@pytest.mark.parametrize(
    "file", sorted(CLUSTER.glob("**/compose*.yaml")), ids=lambda file: str(file.relative_to(CLUSTER))
)
def test_compose_takes_the_file(file: Path):
    program = require_program("docker-compose", "docker-compose")
    done = subprocess.run(
        [program, "--file", str(file), "config", "--quiet"],
        env=os.environ | {"STT_API_KEY": "x"}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_compose_wants_a_key_and_a_gpu_and_opens_one_port():
    file = CLUSTER / "docker" / "compose.yaml"
    program = require_program("docker-compose", "docker-compose")
    environment = {name: value for name, value in os.environ.items() if name != "STT_API_KEY"}
    command = [program, "--file", str(file), "config", "--quiet"]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert refused.returncode != 0
    assert "STT_API_KEY" in refused.stderr
    service = read(file)["services"]["stt"]
    (devices,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert devices["capabilities"] == ["gpu"]
    (port,) = service["ports"]
    assert port.startswith("127.0.0.1:")
    assert port.endswith(f":{PORT}")
    assert service["ulimits"]["nofile"] > HAPROXY_FILES


def test_every_file_is_named_in_the_readme():
    text = (CLUSTER / "README.md").read_text()
    for entry in [*LAUNCHERS, *SERVE_CONFIGS, CLUSTER / "kuberay", CLUSTER / "proxmox", CLUSTER / "docker"]:
        assert entry.name in text

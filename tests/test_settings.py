"""Settings: files, environment, messages."""

import pickle
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from ray.serve.schema import ServeDeploySchema

from serve_app.bridges.settings import KafkaSettings
from serve_app.problems import group_of
from serve_app.settings import (
    ENVIRONMENT,
    MODELS_FOLDER,
    PROJECT_ROOT,
    AutoscalingSettings,
    Settings,
    SettingsError,
    from_args,
    is_hub_id,
    key_digest,
    load,
    resolve_model,
    with_model,
)

SERVE_CONFIG = PROJECT_ROOT / "serve_config.yaml"


def problems_of(args: dict, environ: dict | None = None) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as error:
        from_args(args, environ or {}, origin="here.yaml")
    return error.value.problems


def write_config(folder: Path, text: str) -> Path:
    path = folder / "serve.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_our_serve_config_is_valid_for_us_and_for_ray() -> None:
    settings = load(SERVE_CONFIG, {})
    schema = ServeDeploySchema.model_validate(yaml.safe_load(SERVE_CONFIG.read_text(encoding="utf-8")))
    assert [(app.name, app.route_prefix, app.import_path) for app in schema.applications] == [
        ("stt", "/", "serve_app.app:build")
    ]
    assert from_args(schema.applications[0].args, {}) == settings
    assert schema.http_options.host == "127.0.0.1"


def test_our_serve_config_says_what_the_defaults_are() -> None:
    assert load(SERVE_CONFIG, {}) == Settings()


def test_every_key_is_described() -> None:
    def undescribed(group: type[BaseModel], prefix: str) -> list[str]:
        missing = []
        for name, field in group.model_fields.items():
            if not field.description:
                missing.append(prefix + name)
            if inner := group_of(field.annotation):
                missing += undescribed(inner, f"{prefix}{name}.")
        return missing

    assert undescribed(Settings, "") == []


@pytest.mark.parametrize(
    ("variable", "text", "key", "expected"),
    [
        ("KYUTAI_APP_NAME", "talk", "app_name", "talk"),
        ("MODEL_NAME", "stt-2.6b-en", "model", "stt-2.6b-en"),
        ("BATCH_SIZE", "7", "engine.slots", 7),
        ("BATCH_SIZE", "Auto", "engine.slots", "auto"),
        ("MAX_CONCURRENT_SESSIONS", "9", "engine.slots", 9),
        ("KYUTAI_GPU", "l40s", "engine.gpu", "L40S"),
        ("LOOM_MODEL_DEVICE", "cpu", "engine.device", "cpu"),
        ("LOOM_MODEL_CACHE_DIR", "cache", "engine.model_cache_dir", "cache"),
        ("IDLE_AUDIO_TIMEOUT_SECONDS", "12.5", "session.idle_audio_timeout_seconds", 12.5),
        ("MAX_SESSION_SECONDS", "60", "session.max_session_seconds", 60.0),
        ("LOOM_LOG_LEVEL", "WARNING", "log_level", "warning"),
        ("LOOM_KAFKA_BOOTSTRAP_SERVERS", "there:9092", "kafka.bootstrap_servers", "there:9092"),
        ("LOOM_KAFKA_INPUT_TOPIC", "audio", "kafka.input_topic", "audio"),
        ("LOOM_KAFKA_OUTPUT_TOPIC", "words", "kafka.output_topic", "words"),
        ("LOOM_KAFKA_SECURITY_PROTOCOL", "sasl_ssl", "kafka.security_protocol", "SASL_SSL"),
        ("SESSION_GAP_SECONDS", "2.5", "kafka.session_gap_seconds", 2.5),
    ],
)
def test_environment_wins_over_the_file(variable: str, text: str, key: str, expected: object) -> None:
    args = {
        "app_name": "file",
        "model": "demo",
        "engine": {"slots": 3, "device": "auto", "model_cache_dir": "file"},
        "session": {"idle_audio_timeout_seconds": 1, "max_session_seconds": 2},
        "log_level": "error",
        "kafka": {"bootstrap_servers": "file:9092"},
    }
    value: object = from_args(args, {variable: text})
    for name in key.split("."):
        value = getattr(value, name)
    assert value == expected
    assert type(value) is type(expected)


def test_every_variable_names_an_existing_key() -> None:
    for key, _ in ENVIRONMENT.values():
        value: object = Settings(kafka=KafkaSettings(bootstrap_servers="here:9092"))
        for name in key:
            assert hasattr(value, name)
            value = getattr(value, name)


def test_empty_variables_count_as_unset() -> None:
    assert from_args({}, dict.fromkeys(ENVIRONMENT, "  ")) == Settings()


def test_variables_of_the_kafka_bridge_without_brokers_are_ignored_with_a_warning(caplog) -> None:
    leftover = {"SESSION_GAP_SECONDS": "much", "LOOM_KAFKA_INPUT_TOPIC": "audio", "MODEL_NAME": "demo"}
    assert from_args({}, leftover) == Settings(model="demo")
    (warning,) = caplog.messages
    assert warning.startswith("LOOM_KAFKA_INPUT_TOPIC, SESSION_GAP_SECONDS: ignored, as LOOM_KAFKA_BOOTSTRAP_SERVERS")
    (problem,) = problems_of({"kafka": {"input_topic": "audio"}}, {"LOOM_KAFKA_GROUP_ID": "one"})
    assert problem == "here.yaml: kafka.bootstrap_servers: expected a value, got none"


def test_two_names_for_slots_may_agree_but_not_differ() -> None:
    assert from_args({}, {"BATCH_SIZE": "8", "MAX_CONCURRENT_SESSIONS": "8"}).engine.slots == 8
    (problem,) = problems_of({}, {"BATCH_SIZE": "8", "MAX_CONCURRENT_SESSIONS": "9"})
    assert problem == (
        "environment: BATCH_SIZE and MAX_CONCURRENT_SESSIONS: expected one value of engine.slots, got 8 and 9"
    )


def test_a_wrong_variable_is_named() -> None:
    assert problems_of({"engine": {"slots": 4}}, {"BATCH_SIZE": "eight"}) == (
        "environment variable BATCH_SIZE: engine.slots: expected a whole number from 1 to 4096, or 'auto', got 'eight'",
    )
    assert problems_of({}, {"MAX_SESSION_SECONDS": "inf"}) == (
        "environment variable MAX_SESSION_SECONDS: session.max_session_seconds: expected a finite number, got inf",
    )


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"engine": {"slots": 0}}, "engine.slots: expected a whole number from 1 to 4096, or 'auto', got 0"),
        ({"engine": {"slots": True}}, "engine.slots: expected a whole number from 1 to 4096, or 'auto', got True"),
        ({"engine": {"slots": "8"}}, "engine.slots: expected a whole number from 1 to 4096, or 'auto', got '8'"),
        ({"engine": {"min_headroom": 1}}, "engine.min_headroom: expected less than 1.0, got 1"),
        ({"engine": {"min_headroom": float("nan")}}, "engine.min_headroom: expected a finite number, got nan"),
        ({"engine": {"device": "gpu"}}, "engine.device: expected 'auto', 'cpu' or 'cuda', got 'gpu'"),
        ({"engine": {"slot": 4}}, "engine.slot: unknown key; did you mean 'slots'?"),
        ({"slots": 4}, "slots: unknown key; did you mean 'engine.slots'?"),
        ({"modle": "demo"}, "modle: unknown key; did you mean 'model'?"),
        ({"model_settings": {}}, "model_settings: unknown key"),
        ({"session": 5}, "session: expected a group of keys, got 5"),
        ({"ingress": {"allowed_origins": ["https://a/"]}}, "ingress.allowed_origins[0]: expected text that matches"),
        ({"log_format": None}, "log_format: expected 'json' or 'console', got None"),
        ({"app_name": "two words"}, "app_name: expected text that matches"),
        ({"link": {"port": 70_000}}, "link.port: expected at most 65535, got 70000"),
        ({"link": {"timeout_seconds": 1}}, "link.timeout_seconds: expected at least twice link.heartbeat_seconds (1)"),
        ({"engine": {"device": "cpu", "gpu": "L4"}}, "engine.device: expected auto or cuda together with gpu L4"),
        ({"engine": {"device": "cpu", "num_gpus": 0.5}}, "engine.device: expected auto or cuda together with num_gpus"),
        ({"engine": {"gpu": "L4", "num_gpus": 0}}, "engine.num_gpus: expected more than 0"),
        ({"engine": {"gpu": "L4", "num_gpus": 1.5}}, "engine.num_gpus: expected a part of one GPU or a whole number"),
        ({"engine": {"gpu": "L5"}}, "engine.gpu: expected one of T4, L4, A10G, L40S, A100-40G, A100, H100, H200, got"),
        (
            {"model": "kyutai/stt-1b-en_fr", "engine": {"gpu": "L4", "slots": 400}},
            "engine.slots: expected at most 173 for stt-1b-en_fr in the 24 GB of an L4, got 400",
        ),
        (
            {"engine": {"autoscaling": {"min_replicas": 3, "max_replicas": 2}}},
            "engine.autoscaling.min_replicas: expected at most max_replicas (2), got 3",
        ),
        (
            {"engine": {"autoscaling": {"target_share": 0.9, "steady_share": 0.8}}},
            "engine.autoscaling.steady_share: expected at least target_share (0.9), got 0.8",
        ),
        (
            {"engine": {"slots": "auto", "autoscaling": {}}},
            "engine.slots: expected a number together with autoscaling, got 'auto'",
        ),
        (
            {"engine": {"replicas": 2, "autoscaling": {}}},
            "engine.replicas: expected no fixed number beside autoscaling, got 2",
        ),
        (
            {"ingress": {"replicas": 2, "autoscaling": {}}},
            "ingress.replicas: expected no fixed number beside autoscaling, got 2",
        ),
        (
            {"ingress": {"autoscaling": {"min_replicas": 11}}},
            "ingress.autoscaling.min_replicas: expected at most max_replicas (10), got 11",
        ),
        (
            {"engine": {}, "models": [{"model": "demo"}, {"model": "stt-2.6b-en"}]},
            "models[0].name: expected another name than the other models, got 'demo'",
        ),
        (
            {"models": [{"model": "demo", "name": "b", "engine": {"slot": 3}}]},
            "models[0].engine.slot: unknown key; did you mean 'slots'?",
        ),
        (
            {"models": [{"model": "demo", "name": "b", "engine": {"queue_frames": 3}}]},
            "models[0]: session.window_frames: expected at most engine.queue_frames (3), got 24",
        ),
        (
            {"models": [{"name": "b"}]},
            "models[0].model: expected a value, got none",
        ),
        (
            {"engine": {"autoscaling": {"max_replica": 2}}},
            "engine.autoscaling.max_replica: unknown key; did you mean 'max_replicas'?",
        ),
        (
            {"session": {"window_frames": 33}},
            "session.window_frames: expected at most engine.queue_frames (32), got 33",
        ),
        ({"model": "demmo"}, "model: expected one of demo, stt-1b-en_fr, stt-2.6b-en, a model file, a checkpoint"),
        ({"model": "nowhere.yaml"}, "model: expected a model file that exists, got 'nowhere.yaml'"),
    ],
)
def test_a_wrong_setting_says_where_and_what(args: dict, expected: str) -> None:
    (problem,) = problems_of(args)
    assert problem.startswith(f"here.yaml: {expected}")


def test_a_command_lines_option_wins_and_is_blamed() -> None:
    environ = {"MODEL_NAME": "no-such-model"}
    assert from_args({"model": "nor-this-one"}, environ, options={"model": "stt-1b-en_fr"}).model == "stt-1b-en_fr"
    with pytest.raises(SettingsError) as error:
        from_args({}, {"MODEL_NAME": "demo"}, options={"model": "demos"})
    assert str(error.value).startswith("option --model: model: expected one of demo,")


def test_all_problems_are_reported_at_once_one_per_line() -> None:
    with pytest.raises(SettingsError) as error:
        from_args({"nonsense": 1, "engine": {"slots": -1}, "link": {"heartbeat_seconds": 0}}, {"KYUTAI_GPU": "a b"})
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    assert {line.split(": ")[0] for line in lines} == {"serve_config.yaml", "environment variable KYUTAI_GPU"}
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_a_group_with_every_key_commented_out_is_empty() -> None:
    assert from_args({"engine": None}, {"BATCH_SIZE": "5"}).engine.slots == 5


def test_an_empty_engine_is_no_choice_between_models() -> None:
    models = [{"model": "demo", "name": "small", "engine": {"slots": 3}}]
    assert from_args({"model": "small", "models": models, "engine": None}, {}).engine.slots == 3


@pytest.mark.parametrize(
    "args",
    [
        {name: None for name, field in Settings.model_fields.items() if group_of(field.annotation)},
        {"auth": {"keys": None}, "ingress": {"allowed_origins": None}},
        {"models": None, "engine": {}},
    ],
)
def test_groups_and_lists_with_everything_commented_out_are_empty(args: dict) -> None:
    assert from_args(args, {}) == Settings()


def test_a_kafka_group_with_every_key_commented_out_is_no_bridge_unless_the_environment_names_brokers(caplog) -> None:
    servers = {"LOOM_KAFKA_BOOTSTRAP_SERVERS": "kafka:9092"}
    kafka = from_args({"kafka": None}, servers).kafka
    assert kafka == from_args({}, servers).kafka == KafkaSettings(bootstrap_servers="kafka:9092")
    assert from_args({"kafka": None}, {}).kafka is None
    assert not caplog.text
    assert from_args({"kafka": None}, {"LOOM_KAFKA_INPUT_TOPIC": "audio"}).kafka is None
    assert "LOOM_KAFKA_INPUT_TOPIC: ignored" in caplog.text
    assert from_args({"kafka": {"librdkafka": None}}, servers).kafka == kafka


def test_autoscaling_with_every_key_commented_out_has_the_earlier_services_defaults() -> None:
    engine = from_args({"engine": {"autoscaling": None}}, {}).engine
    assert engine.autoscaling == AutoscalingSettings(
        min_replicas=0, max_replicas=10, target_share=0.8, buffer_replicas=0, scaledown_window_seconds=60.0
    )
    assert engine.most_replicas == 10
    assert from_args({}, {}).engine.most_replicas == from_args({}, {}).engine.replicas == 1


def test_the_file_is_not_changed_by_the_environment() -> None:
    args = {"engine": {"slots": 3}}
    from_args(args, {"BATCH_SIZE": "5"})
    assert args == {"engine": {"slots": 3}}


@pytest.mark.parametrize(
    ("engine", "gpu", "reserved"),
    [
        ({}, None, 0),
        ({"device": "cuda"}, None, 1),
        ({"gpu": "H100"}, "H100", 1),
        ({"gpu": "none"}, None, 0),
        ({"gpu": "a10g", "num_gpus": 0.25}, "A10G", 0.25),
        ({"gpu": "A100-40G"}, "A100-40G", 1),
    ],
)
def test_gpus(engine: dict, gpu: str | None, reserved: float) -> None:
    settings = from_args({"engine": engine}, {}).engine
    assert (settings.gpu, settings.reserved_gpus) == (gpu, reserved)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("applications: [", "expected YAML, got"),
        ("- 1", "expected a mapping, got [1]"),
        ("{}", "applications: expected a list with one application, got None"),
        ("applications: []", "applications: expected a list with one application, got []"),
        ("applications: [{}, {}]", "applications: expected a list with one application, got 2"),
        ("applications: [{import_path: 'other:app'}]", "applications[0].import_path: expected 'serve_app.app:build'"),
        ("applications: [{import_path: 'serve_app.app:build', args: 3}]", "applications[0].args: expected a mapping"),
        (
            "applications: [{import_path: 'serve_app.app:build', args: {log_level: loud}}]",
            "log_level: expected 'debug'",
        ),
    ],
)
def test_a_wrong_serve_config_file(tmp_path: Path, text: str, expected: str) -> None:
    path = write_config(tmp_path, text)
    with pytest.raises(SettingsError) as error:
        load(path, {})
    (problem,) = error.value.problems
    assert problem.startswith(f"{path}: {expected}")


def test_a_missing_serve_config_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.yaml: expected a readable file, got: No such file"):
        load(tmp_path / "none.yaml", {})


def test_a_serve_config_file_without_args_has_the_defaults(tmp_path: Path) -> None:
    path = write_config(tmp_path, "applications: [{import_path: 'serve_app.app:build'}]")
    assert load(path, {}) == Settings()


@pytest.mark.parametrize("file", sorted(MODELS_FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_our_model_files(file: Path) -> None:
    model = resolve_model(file.stem)
    assert model == resolve_model(str(file))
    assert model.description
    assert is_hub_id(model.source) or model.checkpoint == file.with_suffix("")


def test_official_delays() -> None:
    assert resolve_model("stt-1b-en_fr").audio_delay_frames == 6
    assert resolve_model("stt-2.6b-en").audio_delay_frames == 32


def test_a_hub_id_finds_its_model_file() -> None:
    assert resolve_model("kyutai/stt-2.6b-en") == resolve_model("stt-2.6b-en")
    other = resolve_model("somebody/another-model")
    assert (other.checkpoint, other.audio_delay_frames) == ("somebody/another-model", None)


def test_a_model_file_finds_its_checkpoint_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("source: weights\npause_threshold: 0.5\n", encoding="utf-8")
    model = from_args({"model": str(file)}, {}).model_settings
    assert model.checkpoint == (tmp_path / "weights").resolve()
    assert model.pause_threshold == 0.5


def test_a_checkpoint_folder_may_exist_on_other_machines_only(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path / "elsewhere")).checkpoint == (tmp_path / "elsewhere").resolve()


def test_a_relative_checkpoint_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("a/b").checkpoint == (tmp_path / "a" / "b").resolve()
    assert resolve_model("c/d").checkpoint == "c/d"


def test_a_wrong_key_in_a_model_file_names_that_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("source: weights\npause_treshold: 0.5\n", encoding="utf-8")
    with pytest.raises(SettingsError) as error:
        from_args({"model": str(file)}, {})
    assert error.value.problems == (f"{file}: pause_treshold: unknown key; did you mean 'pause_threshold'?",)


def test_settings_travel_with_their_model() -> None:
    settings = from_args({"model": "stt-1b-en_fr", "engine": {"slots": 5}}, {})
    copy = pickle.loads(pickle.dumps(settings))
    assert copy == settings
    assert copy.model_settings == settings.model_settings == resolve_model("stt-1b-en_fr")


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().engine.slots = 3  # type: ignore[misc]


KEY_ENTRY = {"name": "ann", "sha256": "a" * 64}


def test_keys_are_required_where_there_are_some_or_where_that_is_said(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump({"keys": [KEY_ENTRY]}), encoding="utf-8")
    assert not from_args({}, {}).auth.required
    assert from_args({"auth": {"keys": [KEY_ENTRY]}}, {}).auth.required
    assert from_args({}, {"STT_KEYS_FILE": str(file)}).auth.keys_in_file[0].name == "ann"
    assert not from_args({"auth": {"keys": [KEY_ENTRY]}}, {"STT_AUTH": "none"}).auth.required
    copy = pickle.loads(pickle.dumps(from_args({"auth": {"keys_file": str(file)}}, {})))
    assert copy.auth.keys_in_file[0].sha256 == "a" * 64


@pytest.mark.parametrize(
    ("environ", "key"),
    [
        ({"STT_API_KEY": " one "}, b"one"),
        ({"MODAL_KEY": "a", "MODAL_SECRET": "b"}, b"a:b"),
        ({"STT_API_KEY": "one", "MODAL_KEY": "a", "MODAL_SECRET": "b"}, b"one"),
    ],
)
def test_a_key_in_the_environment_is_kept_as_its_hash(environ: dict, key: bytes) -> None:
    settings = from_args({}, environ)
    assert [(one.name, one.sha256) for one in settings.auth.keys] == [("environment", key_digest(key))]
    assert not from_args({}, {"MODAL_KEY": "a"}).auth.required


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_needs_no_keys(host: str) -> None:
    Settings().auth.check_host(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.1", "somewhere"])
def test_whoever_listens_for_others_has_keys_or_says_that_there_are_none(host: str) -> None:
    with pytest.raises(SettingsError, match=r"expected 127\.0\.0\.1 as long as there are no API keys"):
        Settings().auth.check_host(host)
    from_args({"auth": {"keys": [KEY_ENTRY]}}, {}).auth.check_host(host)
    from_args({"auth": {"mode": "none"}}, {}).auth.check_host(host)


@pytest.mark.parametrize(
    "auth",
    [
        {"keys": "s3cret"},
        {"keys": ["s3cret"]},
        {"keys": [{"name": "ann", "sha256": "s3cret"}]},
        {"keys": [{"name": "s3cret !", "sha256": "a" * 64}]},
        {"keys": [{"name": "ann", "sha256": ["s3cret"]}]},
        {"keys": [{"name": "ann", "key": "s3cret"}]},
        {"keys": [KEY_ENTRY | {"max_sessions": 0}]},
        {"keys": [KEY_ENTRY, KEY_ENTRY]},
        {"mode": "keys"},
    ],
)
def test_wrong_keys_are_told_without_them(auth: dict) -> None:
    problems = problems_of({"auth": auth})
    assert all(problem.startswith("here.yaml: auth.keys") for problem in problems)
    assert "s3cret" not in str(problems)


@pytest.mark.parametrize(
    "text", ["s3cret", "[s3cret]", "keys: s3cret", "keys: [s3cret]", "keys: [{sha256: s3cret}]", "a: b: s3cret", "\0"]
)
def test_a_wrong_keys_file_is_told_without_its_contents(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(text, encoding="utf-8")
    problems = problems_of({"auth": {"keys_file": str(file)}})
    assert all(problem.startswith(f"{file}: ") for problem in problems)
    assert "s3cret" not in str(problems)


def test_a_keys_file_must_be_there_and_hold_keys_with_names_of_their_own(tmp_path: Path) -> None:
    (problem,) = problems_of({"auth": {"keys_file": str(tmp_path / "none.yaml")}})
    assert "none.yaml: expected a readable file" in problem
    assert problem.endswith(f"(stt keys add NAME --file {tmp_path / 'none.yaml'} makes it)")
    file = tmp_path / "keys.yaml"
    file.write_text("keys: []", encoding="utf-8")
    (problem,) = problems_of({"auth": {"keys_file": str(file)}})
    assert problem == "here.yaml: auth.keys: expected at least one here or in auth.keys_file, got none"
    file.write_text(yaml.safe_dump({"keys": [KEY_ENTRY]}), encoding="utf-8")
    (problem,) = problems_of({"auth": {"keys_file": str(file), "keys": [KEY_ENTRY | {"sha256": "b" * 64}]}})
    assert problem == "here.yaml: auth.keys: expected keys with different names, here and in auth.keys_file"


def test_further_models_have_engines_of_their_own_and_share_the_rest():
    further = [{"model": "demo", "name": "small", "engine": {"slots": 2}}, {"model": "stt-2.6b-en"}]
    settings = from_args({"models": further, "engine": {"slots": 8}, "log_level": "error"}, {"BATCH_SIZE": "9"})
    settings = pickle.loads(pickle.dumps(settings))  # as it goes to the replicas
    served = settings.served
    assert {name: one.engine.slots for name, one in served.items()} == {"demo": 9, "small": 2, "stt-2.6b-en": 32}
    assert served["small"].model_settings == served["demo"].model_settings
    assert served["stt-2.6b-en"].model_settings.source == "kyutai/stt-2.6b-en"
    assert {one.log_level for one in served.values()} == {"error"}


SEVERAL = {
    "model": "stt-1b-en_fr",
    "engine": {"slots": 8},
    "models": [{"model": "demo", "name": "small", "engine": {"slots": 2}}, {"model": "stt-2.6b-en"}],
}


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ("stt-1b-en_fr", {"stt-1b-en_fr": 8, "small": 2, "stt-2.6b-en": 32}),
        ("small", {"small": 2, "stt-2.6b-en": 32}),
        ("demo", {"small": 2, "stt-2.6b-en": 32}),
        ("stt-2.6b-en", {"stt-2.6b-en": 32, "small": 2}),
        ("kyutai/stt-2.6b-en", {"kyutai/stt-2.6b-en": 8, "small": 2, "stt-2.6b-en": 32}),
    ],
)
def test_one_of_several_models_becomes_the_first_with_its_own_engines(chosen: str, expected: dict[str, int]):
    by_option = from_args(SEVERAL, {}, options={"model": chosen})
    by_variable = from_args(SEVERAL, {"MODEL_NAME": chosen})
    in_the_file = from_args(with_model(SEVERAL, chosen), {})
    on_the_cluster = from_args(with_model(SEVERAL, chosen), {"MODEL_NAME": chosen})
    for settings in (by_option, by_variable, in_the_file, on_the_cluster):
        assert {name: one.engine.slots for name, one in settings.served.items()} == expected
        assert next(iter(settings.served)) == settings.model
    if "small" in (chosen, settings.model):
        assert settings.model_settings == resolve_model("demo")


def test_a_second_one_of_the_first_checkpoint_takes_nothing_from_the_first():
    twice = {"model": "demo", "models": [{"model": "demo", "name": "second", "engine": {"slots": 2}}]}
    for settings in (from_args(twice, {}), from_args(twice, {"MODEL_NAME": "demo"})):
        assert {name: one.engine.slots for name, one in settings.served.items()} == {"demo": 32, "second": 2}


def test_the_name_of_the_model_that_becomes_the_first_is_what_must_differ():
    args = {"model": "demo", "models": [{"model": "stt-2.6b-en"}, {"model": "stt-2.6b-en", "name": "fast"}]}
    assert list(from_args(args, {"MODEL_NAME": "fast"}).served) == ["fast", "stt-2.6b-en"]
    assert list(from_args(args, {"MODEL_NAME": "stt-2.6b-en"}).served) == ["stt-2.6b-en", "fast"]


def test_a_wrong_key_of_the_model_that_becomes_the_first_is_told_too():
    wrong = {"models": [{"model": "stt-2.6b-en"}, {"model": "demo", "name": "small", "engin": {}}]}
    with pytest.raises(SettingsError, match=r"models\[1\]: engin: "):
        from_args(wrong, {"MODEL_NAME": "small"})


TOO_MANY = {"gpu": "L4", "slots": 4000}


@pytest.mark.parametrize(
    ("further", "begins"),
    [
        ([{"model": "demo", "engine": {"slots": 0}}], "models[0].engine.slots: expected"),
        ([{"model": "stt-1b-en_fr", "name": "demo", "engine": TOO_MANY}], "models[0].engine.slots: expected at most"),
        ([{"model": "demo"}, {"model": "stt-2.6b-en", "engin": 1}], "models[1].engin: unknown key"),
        ([{"model": "demo"}, {"model": "stt-2.6b-en", "name": "dem o"}], "models[1].name: expected text"),
        ([{"model": "x/1"}, {"model": "demo"}, {"model": "x/2", "engine": {"slots": 0}}], "models[2].engine.slots: "),
        ([{"model": "x/1", "engine": {"queue_frames": 1}}, {"model": "demo"}], "models[0]: session.window_frames: "),
        ([{"model": "demo"}, {"model": "x/1", "engine": {"queue_frames": 1}}], "models[1]: session.window_frames: "),
        ([{"model": "demo"}, {"model": "x/1"}, {"model": "x-1"}], "models[2].name: expected another name"),
    ],
)
def test_a_chosen_models_file_is_blamed_where_it_is_wrong(further: list, begins: str):
    with pytest.raises(SettingsError) as error:
        from_args({"model": "stt-1b-en_fr", "models": further}, {}, "here.yaml", {"model": "demo"})
    (problem,) = error.value.problems
    assert problem.startswith(f"here.yaml: {begins}")


def test_variables_are_about_the_model_that_has_become_the_first():
    settings = from_args(SEVERAL, {"MODEL_NAME": "small", "BATCH_SIZE": "5"})
    assert {name: one.engine.slots for name, one in settings.served.items()} == {"small": 5, "stt-2.6b-en": 32}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("group.id", "that the bridge leaves open"),
        ("acks", "that the bridge leaves open"),
        ("topic.acks", "that the bridge leaves open"),
        ("error_cb", "that are numbers, text, true or false"),
        ("logger", "that are numbers, text, true or false"),
    ],
)
def test_properties_of_the_brokers_clients_that_cannot_be_set_are_named(name: str, expected: str) -> None:
    (problem,) = problems_of({"kafka": {"bootstrap_servers": "x:1", "librdkafka": {"linger.ms": 1, name: "hunter1"}}})
    assert problem == f"here.yaml: kafka.librdkafka: expected properties {expected}, got {name!r}"


def test_secrets_for_the_brokers_are_never_repeated():
    kafka = {
        "sasl_password": "hunter1",
        "service_key": "hunter2",
        "librdkafka": {"sasl.oauthbearer.client.secret": "hunter3", "linger.ms": 5},
    }
    settings = from_args({"kafka": {"bootstrap_servers": "there:9092"} | kafka}, origin="file", environ={})
    for shown in (repr(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert "sasl.oauthbearer.client.secret" in shown
        assert "hunter" not in shown
    assert settings.kafka is not None
    assert settings.kafka.client_properties == {
        "bootstrap.servers": "there:9092",
        "sasl.password": "hunter1",
        "sasl.oauthbearer.client.secret": "hunter3",
        "linger.ms": 5,
    }
    for wrong in (
        {"sasl_password": ["hunter1"]},
        {"librdkafka": {"ssl.key.pem": ["hunter1"]}},
        {"librdkafka": "hunter1"},
    ):
        with pytest.raises(SettingsError, match="got something else") as error:
            from_args({"kafka": {"bootstrap_servers": "there:9092"} | wrong}, origin="file", environ={})
        assert "hunter" not in str(error.value)

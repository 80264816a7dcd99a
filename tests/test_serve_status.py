"""What is told of an application that does not start; the messages are Serve's own."""

from typing import Any

import pytest

from serve_app.cli.serve_status import failure

REMOTE = "\x1b[36mray::ServeReplica:stt:engine.initialize_and_get_metadata()\x1b[39m (pid=10068, ip=192.0.2.2)\n"
TRACEBACK = f"""{REMOTE}  File "replica.py", line 1928, in initialize
    raise RuntimeError(traceback.format_exc()) from None
RuntimeError: Traceback (most recent call last):
  File "checkpoint.py", line 155, in _check_weights
    result = module.load_state_dict(kept, strict=False, assign=True)
RuntimeError: Error(s) in loading state_dict for LMModel:

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "deployment.py", line 35, in __init__
    self._service = await asyncio.to_thread(_load, settings, name)
"""
OURS = "serve_app.checkpoint.files.CheckpointError: model.safetensors: expected the shapes, got: a\n  and b\n"
RETRYING = "A replica failed to start with exception. Retrying 2 more time(s). Error:\n"
GIVEN_UP = "The deployment failed to start 3 times in a row. See controller logs for details. Error:\n"


def applications(status: str, message: str, engine: str, ingress: str = "") -> dict[str, Any]:
    deployments = {"engine": {"message": engine}, "ingress": {"message": ingress}}
    return {
        "stt": {"status": status, "message": message, "deployments": deployments},
        "somebody-else": {"status": "UNHEALTHY", "message": "not ours", "deployments": {}},
    }


def test_the_first_failure_counts_and_our_error_speaks_for_itself():
    answer = applications("DEPLOYING", "", RETRYING + TRACEBACK + OURS)
    assert failure(answer, "stt") == "model.safetensors: expected the shapes, got: a\n  and b"


def test_any_other_error_comes_with_its_traceback():
    found = failure(applications("DEPLOYING", "", RETRYING + TRACEBACK + "MemoryError: no more\n"), "stt")
    assert found.startswith(f"the application does not start\n{RETRYING}")
    assert found.endswith("MemoryError: no more")
    assert "\x1b" not in found


def test_a_start_that_was_given_up():
    answer = applications("DEPLOY_FAILED", "Failed to update the deployments ['engine'].", GIVEN_UP + TRACEBACK + OURS)
    assert failure(answer, "stt") == "model.safetensors: expected the shapes, got: a\n  and b"


def test_an_application_that_cannot_be_built():
    text = "Traceback (most recent call last):\nserve_app.settings.SettingsError: model: expected one\nand: another\n"
    answer = {"stt": {"status": "DEPLOY_FAILED", "message": text, "deployments": {}}}
    assert failure(answer, "stt") == "model: expected one\nand: another"


@pytest.mark.parametrize("engine", ["", "Deployment 'engine' in application 'stt' has 1 replica that takes long."])
def test_nothing_is_wrong(engine: str):
    assert failure(applications("DEPLOYING", "", engine), "stt") is None
    assert failure({}, "stt") is None

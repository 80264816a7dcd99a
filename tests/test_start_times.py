"""The stages of an engine's start."""

import time

import pytest

from serve_app.engine.start_times import StartTimes, process_age_seconds


def test_stages_add_up_to_what_the_process_has_lived() -> None:
    times = StartTimes()
    for _ in range(2):
        with times.stage("weights"):
            time.sleep(0.01)
    with pytest.raises(LookupError), times.stage("imports"):
        raise LookupError
    fields = times.as_fields()
    assert list(fields) == ["process_seconds", "weights_seconds", "imports_seconds", "total_seconds"]
    assert fields["weights_seconds"] >= 0.02
    assert fields["total_seconds"] >= fields["process_seconds"] + fields["weights_seconds"] - 0.02


def test_a_process_grows_older() -> None:
    before = process_age_seconds()
    time.sleep(0.03)
    assert process_age_seconds() > before > 0

"""A histogram that takes arrays counts as Prometheus' own does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from serve_app.telemetry.array_histogram import ArrayHistogram

BUCKETS = (0.01, 0.08, 1.0)
ANSWERS = st.lists(st.lists(st.sampled_from([0.0, 0.01, 0.0100001, 0.08, 0.5, 1.0, 7.0]), max_size=8), max_size=5)


def samples(registry: CollectorRegistry) -> dict[tuple, float]:
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@given(ANSWERS)
def test_it_counts_as_the_client_library_does(steps):
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    arrays = ArrayHistogram("wait_seconds", "Waits.", "stage", ["queue"], BUCKETS)
    ours.register(arrays)
    single = Histogram("wait_seconds", "Waits.", ["stage"], buckets=BUCKETS, registry=theirs)
    single.labels("queue")
    for step in steps:
        arrays.observe("queue", np.array(step))
        for value in step:
            single.labels("queue").observe(value)
    assert samples(ours) == pytest.approx(samples(theirs))


def test_a_single_number_counts_once_and_under_its_own_label():
    registry = CollectorRegistry()
    histogram = ArrayHistogram("wait_seconds", "Waits.", "stage", ["queue", "step"], BUCKETS)
    registry.register(histogram)
    histogram.observe("step", 0.05)
    assert registry.get_sample_value("wait_seconds_count", {"stage": "step"}) == 1
    assert registry.get_sample_value("wait_seconds_bucket", {"stage": "step", "le": "0.01"}) == 0
    assert registry.get_sample_value("wait_seconds_bucket", {"stage": "step", "le": "0.08"}) == 1
    assert registry.get_sample_value("wait_seconds_count", {"stage": "queue"}) == 0

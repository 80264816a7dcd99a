"""A histogram that takes arrays: in the step loop, Python for every row would cost more than the counting."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class ArrayHistogram(Collector):
    """One label, with values known beforehand. One thread observes; another one may collect."""

    def __init__(
        self, name: str, documentation: str, label: str, values: Sequence[str], buckets: Sequence[float]
    ) -> None:
        """`values` are those of the label; `buckets` rise, without infinity."""
        self._name, self._documentation, self._label = name, documentation, label
        self._bounds = np.array(buckets, dtype=np.float64)
        self._counts: dict[str, NDArray[np.int64]] = {
            value: np.zeros(len(buckets) + 1, dtype=np.int64) for value in values
        }
        self._sums = dict.fromkeys(values, 0.0)

    def observe(self, value: str, observed: ArrayLike) -> None:
        """Count numbers, one or an array of them, under this value of the label."""
        numbers = np.atleast_1d(np.asarray(observed, dtype=np.float64))
        places = np.searchsorted(self._bounds, numbers)
        self._counts[value] += np.bincount(places, minlength=len(self._bounds) + 1)
        self._sums[value] += float(numbers.sum())

    def collect(self) -> Iterator[Metric]:
        """Yield the histogram; called by the registry."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=[self._label])
        bounds = [*map(repr, self._bounds.tolist()), "+Inf"]
        for value, counts in self._counts.items():
            cumulated = np.cumsum(counts).tolist()
            family.add_metric([value], list(zip(bounds, cumulated, strict=True)), self._sums[value])
        yield family

"""The search for the largest number of streams in real time."""

from hypothesis import given
from hypothesis import strategies as st

from loadtest.engine.capacity import PRECISION, in_real_time, largest, upper_bound
from loadtest.engine.comparing import Agreement
from loadtest.engine.measuring import Measured, Tally


@given(limit=st.integers(0, 5000), most=st.integers(1, 5000), known_share=st.floats(0, 1))
def test_the_largest_number_that_fits_is_found(limit: int, most: int, known_share: float) -> None:
    tried: list[int] = []

    def fits(number: int) -> bool:
        tried.append(number)
        return number <= limit

    best = min(limit, most)
    found = largest(fits, most, int(known_share * best))
    assert found <= best
    assert best - found <= max(1, PRECISION * best)
    assert all(1 <= number <= most for number in tried)
    assert len(tried) <= 30


def test_the_bound_for_the_search_lies_above_what_the_steps_tell() -> None:
    def aligned(streams: int, step_s: float) -> Measured:
        return Measured(streams, "full", "aligned", Tally([step_s]), None, Agreement())

    assert upper_bound([aligned(1, 0.002), aligned(101, 0.022)]) > 390
    assert upper_bound([aligned(8, 0.004)]) > 8
    assert upper_bound([aligned(1, 0.5)]) == 2


def test_real_time_is_a_result_before_the_next_frame() -> None:
    assert in_real_time([0.05] * 100)
    assert not in_real_time([0.05] * 90 + [0.09] * 10)
    assert not in_real_time([]), "nothing measured is nothing shown"

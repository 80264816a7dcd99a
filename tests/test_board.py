"""The board knows who is there, and what became of the others."""

from prometheus_client.metrics_core import GaugeMetricFamily

from serve_app.telemetry.board import ENGINE, INGRESS, STALE_SECONDS, Board, Report, Source

ONE, TWO, THREE = Source(INGRESS, "one"), Source(INGRESS, "two"), Source(ENGINE, "three")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def report(source: Source, value: float = 1.0) -> Report:
    return Report(source, (GaugeMetricFamily("something", "Something.", value=value),))


def own(board: Board) -> dict[tuple[str, ...], float]:
    """What the board itself says: values above zero by their labels."""
    families = next(report.families for report in board.read() if report.source is None)
    return {tuple(s.labels.values()): s.value for family in families for s in family.samples if s.value}


def test_the_latest_report_of_each_replica_is_there():
    board = Board(Clock())
    board.post(report(ONE, 1.0))
    board.post(report(THREE, 5.0))
    board.post(report(ONE, 2.0))
    values = {reported.source: reported.families[0].samples[0].value for reported in board.read() if reported.source}
    assert values == {ONE: 2.0, THREE: 5.0}
    assert own(board) == {("ingress",): 1, ("engine",): 1, ("ingress", "started"): 1, ("engine", "started"): 1}


def test_who_stops_and_who_is_lost():
    clock = Clock()
    board = Board(clock)
    for source in (ONE, TWO, THREE):
        board.post(report(source))
    board.leave(ONE)
    board.leave(ONE)
    clock.now += STALE_SECONDS
    board.post(report(TWO))
    clock.now += 0.1
    seen = own(board)
    assert [reported.source for reported in board.read()] == [TWO, None]
    assert seen == {
        ("ingress",): 1, ("ingress", "started"): 2, ("ingress", "stopped"): 1,
        ("engine", "started"): 1, ("engine", "lost"): 1,
    }  # fmt: skip
    board.post(report(THREE))
    assert own(board)["engine", "started"] == 2


def test_a_report_that_was_overtaken_does_not_replace_a_later_one():
    board = Board(Clock())
    families = report(ONE).families
    board.post(Report(ONE, families, 2))
    board.post(Report(ONE, families, 1))
    assert [reported.number for reported in board.exchange(Report(TWO, families, 1)) if reported.source] == [2, 1]


def test_everything_that_may_rise_is_there_before_it_does():
    families = Board(Clock()).read()[-1].families
    assert [len(family.samples) for family in families] == [2, 6]

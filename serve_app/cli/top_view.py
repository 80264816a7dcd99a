"""Figures of a running service for a terminal, and as plain lines."""

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from serve_app.cli.figures import Figures

NEARLY_FULL = 0.9
LOW_HEADROOM = 0.1
"""`engine.min_headroom`, below which engines admit nobody."""


def screen(service: str, figures: Figures) -> RenderableType:
    """Everything there is, as tables."""
    return Group(_summary(service, figures), _engines(figures), _ingresses(figures))


def line(figures: Figures) -> str:
    """The same in one line, without the single replicas."""
    delays, first = figures.word_delay_s, figures.first_token_s
    parts = [
        f"sessions {_states(figures)}",
        f"slots {figures.slots_used}/{figures.slots}",
        f"headroom {_share(figures.headroom)}",
        f"word delay p50 {_seconds(delays['p50'])} p95 {_seconds(delays['p95'])}",
        f"first text p50 {_seconds(first['p50'])}",
        f"words {_per_s(figures.per_s['words'])}",
        f"refused {_refused(figures)}",
        f"replicas {len(figures.ingresses)}+{len(figures.engines)}",
    ]
    return "  ".join(parts) + ("" if figures.complete else "  (one replica alone)")


def _summary(service: str, figures: Figures) -> Panel:
    grid = Table.grid(padding=(0, 3))
    delays, first = figures.word_delay_s, figures.first_token_s
    full = figures.slots_used >= NEARLY_FULL * figures.slots
    grid.add_row("sessions", _states(figures))
    grid.add_row("slots", Text(f"{figures.slots_used} of {figures.slots}", "red" if full else "green"))
    grid.add_row("least headroom", _headroom(figures.headroom))
    grid.add_row("word delay", "  ".join(f"{name} {_seconds(value)}" for name, value in delays.items()))
    grid.add_row("first text", "  ".join(f"{name} {_seconds(value)}" for name, value in first.items()))
    rates = "  ".join(f"{name} {_per_s(value)}" for name, value in figures.per_s.items())
    grid.add_row("rates", rates)
    grid.add_row("refused", Text(_refused(figures), "red" if figures.refused_per_s else ""))
    if figures.lost_replicas:
        grid.add_row("replicas lost", Text(str(figures.lost_replicas), "yellow"))
    if not figures.complete:
        grid.add_row("", Text("figures of one replica alone: the others' cannot be read", "yellow"))
    return Panel(grid, title=Text(service), title_align="left")


def _engines(figures: Figures) -> Table:
    table = _table("engine", "model", "slots", "headroom", "step p50", "p95", "streams/step", "frames", "CPU")
    for name, engine in figures.engines.items():
        table.add_row(
            name,
            engine.model,
            f"{engine.slots_used}/{engine.slots}",
            _headroom(engine.headroom),
            f"{1_000 * engine.step_p50_s:.1f} ms",
            f"{1_000 * engine.step_p95_s:.1f} ms",
            f"{engine.batch_size:.1f}",
            _per_s(engine.frames_per_s),
            _cores(engine.cpu_cores),
        )
    return table


def _ingresses(figures: Figures) -> Table:
    table = _table("ingress", "sessions", "words", "CPU", "memory")
    for name, ingress in figures.ingresses.items():
        table.add_row(
            name,
            str(ingress.sessions),
            _per_s(ingress.words_per_s),
            _cores(ingress.cpu_cores),
            f"{ingress.memory_bytes / 2**20:.0f} MiB",
        )
    return table


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="dim")
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _states(figures: Figures) -> str:
    states = [f"{count} {state}" for state, count in figures.sessions.items() if count]
    return ", ".join(states) or "none"


def _refused(figures: Figures) -> str:
    return ", ".join(f"{reason} {_per_s(rate)}" for reason, rate in figures.refused_per_s.items()) or "none"


def _headroom(value: float | None) -> Text:
    low = value is not None and value < LOW_HEADROOM
    return Text(_share(value), "red" if low else "green")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _per_s(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}/s"


def _cores(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"

"""What a load test leaves behind: a page that stands for itself, JSON for scripts, CSV for spreadsheets, a picture."""

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtest.steps import LATE_S, Moment, failures, largest_within_budget, measure_all, steps_of
from serve_app.measuring.speaking import Outcome

SPREADS = ("word_delay_s", "first_token_s", "connect_s", "ready_s", "flush_s", "end_s")

_PAGE = jinja2.Template(
    """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{{ report.what }}</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums }
  th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd }
  .bad td { background: #fdecea }
  svg { width: 100%; height: auto }
</style>
<h1>{{ report.what }}</h1>
{% for line in report.verdict %}<p>{{ line }}</p>{% endfor %}
<table>
<tr>{% for heading in table[0] %}<th>{{ heading }}</th>{% endfor %}</tr>
{% for row in table[1:] %}
<tr{% if not report.steps[loop.index0].within_budget %} class="bad"{% endif %}>
{%- for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
<p>Seconds, 50th / 95th / 99th percentile. Word delay: from a word's end in the audio until its text was complete.
First token: from the first word's start. Red: over the budget, or with failures.</p>
{{ picture }}
{% if report.reasons %}
<h2>Failed sessions</h2>
<table>
{% for reason, count in report.reasons.items() %}<tr><td>{{ count }}</td><td>{{ reason }}</td></tr>{% endfor %}
</table>
{% endif %}
<h2>Resources</h2>
<table>
<tr><th>users</th>{% for name in parts %}<th>{{ name }}: cores</th><th>MiB</th>{% endfor %}</tr>
{% for step in report.steps %}
<tr><td>{{ step.users }}</td>{% for name in parts %}{% set used = step.resources.get(name) %}
<td>{{ "%.2f" % used.cpu_cores if used }}</td><td>{{ "%.0f" % (used.memory_bytes / 1048576) if used }}</td>
{% endfor %}</tr>
{% endfor %}
</table>
</html>
""",
    autoescape=True,
)


@dataclass(frozen=True)
class Run:
    """A load test that is over."""

    what: str
    """What was tested, in a line."""
    budget_s: float
    moments: Sequence[Moment]
    outcomes: Sequence[Outcome]


def summarise(run: Run) -> dict[str, Any]:
    """All numbers, as JSON."""
    steps = measure_all(run.moments, run.outcomes, run.budget_s)
    for step, numbers in zip(steps_of(run.moments), steps, strict=True):
        numbers["resources"] = _resources([m for m in run.moments if step.begins_at <= m.at < step.ends_at])
    largest = largest_within_budget(steps)
    late = [str(step["users"]) for step in steps if step["generator_is_bottleneck"]]
    failed = sum(step["failures"] for step in steps)
    verdict = [
        f"Largest number of users with every word's 99th percentile within {run.budget_s:g} s and no failure: "
        f"{largest if largest is not None else 'none'}.",
        f"{sum(step['sessions'] for step in steps)} sessions, {failed} failed.",
    ]
    if late:
        verdict.append(
            f"The generator was the bottleneck with {', '.join(late)} users (over {LATE_S * 1000:g} ms late for one "
            "chunk in a hundred): use more processes or machines for it before you blame the server."
        )
    return {
        "what": run.what,
        "budget_s": run.budget_s,
        "largest_users_within_budget": largest,
        "verdict": verdict,
        "steps": steps,
        "reasons": failures(run.outcomes),
    }


def write(run: Run, page: Path) -> dict[str, Any]:
    """Write `page` (HTML) and its neighbours .json, .csv and .svg; the numbers."""
    report = summarise(run)
    picture = draw(run, report)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.with_suffix(".svg").write_text(picture, encoding="utf-8")
    page.with_suffix(".json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with page.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        rows = [_flat(step) for step in report["steps"]]
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)
    parts = sorted({part for step in report["steps"] for part in step["resources"]})
    inline = Markup(picture[picture.index("<svg") :])
    html = _PAGE.render(report=report, table=table(report["steps"]), parts=parts, picture=inline)
    page.write_text(html, encoding="utf-8")
    return report


def table(steps: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The steps for people: a row of headings, then one row each."""
    headings = ["users", "sessions", "failed", "WER", "word delay", "first token", "connect", "ready", "flush", "end"]
    rows = [[*headings, "generator late p99"]]
    for step in steps:
        wer, late = step["wer"], step["generator_late_p99_s"]
        rows.append(
            [
                str(step["users"]),
                str(step["sessions"]),
                str(step["failures"]),
                "" if wer is None else f"{wer:.3f}",
                *(
                    " / ".join("" if value is None else f"{value:.2f}" for value in step[name].values())
                    for name in SPREADS
                ),
                "" if late is None else f"{late:.3f}",
            ]
        )
    return rows


def draw(run: Run, report: dict[str, Any]) -> str:
    """Everything in one picture, as SVG."""
    with mpl.rc_context({"svg.fonttype": "none", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(11, 7.5), layout="constrained")
        figure.suptitle(run.what)
        by_users, over_time, cores, service = figure.subplots(2, 2).flat
        _draw_by_users(by_users, report)
        start = run.moments[0].at if run.moments else 0.0
        _draw_over_time(over_time, run, start)
        _draw_cores(cores, run.moments, start)
        _draw_service(service, run.moments, start)
        text = io.StringIO()
        figure.savefig(text, format="svg")
    return text.getvalue()


def _draw_by_users(axes: Axes, report: dict[str, Any]) -> None:
    steps = sorted(report["steps"], key=lambda step: step["users"])
    users = [step["users"] for step in steps]
    for name in ("p50", "p95", "p99"):
        axes.plot(users, [_value(step["word_delay_s"][name]) for step in steps], "o-", ms=3, label=f"word delay {name}")
    late = [_value(step["generator_late_p99_s"]) for step in steps]
    axes.plot(users, late, "x:", color="gray", label="generator late p99")
    axes.axhline(report["budget_s"], color="red", lw=1, ls="--", label="budget of p99")
    for step in steps:
        if step["failures"]:
            label = f"{step['failures']} failed"
            axes.annotate(label, (step["users"], 0), color="red", fontsize=7, ha="center")
    axes.set(xlabel="concurrent users", ylabel="s", title="delay against concurrency", ylim=(0, None))
    axes.legend(fontsize=7)


def _draw_over_time(axes: Axes, run: Run, start: float) -> None:
    words = sorted(word for outcome in run.outcomes for word in outcome.word_delays)
    if words:
        at, delay = np.array(words).T
        axes.plot(at - start, delay, ".", ms=1.5, alpha=0.4, label="word delay", rasterized=len(words) > 5_000)
    axes.set(xlabel="s", ylabel="s", title="every word", ylim=(0, None))
    users = axes.twinx()
    users.step([m.at - start for m in run.moments], [m.users for m in run.moments], color="black", lw=1)
    users.set(ylabel="users", ylim=(0, None))
    users.grid(visible=False)


def _draw_cores(axes: Axes, moments: Sequence[Moment], start: float) -> None:
    for part in sorted({part for moment in moments for part in moment.processes}):
        seen = [(m.at - start, m.processes[part]["cpu_cores"]) for m in moments if part in m.processes]
        axes.plot(*np.array(seen).T, lw=1, label=part)
    axes.set(xlabel="s", ylabel="cores", title="CPU in use", ylim=(0, None))
    _legend(axes)


def _draw_service(axes: Axes, moments: Sequence[Moment], start: float) -> None:
    for name in ("headroom", "step p95 s"):
        seen = [(m.at - start, m.service[name]) for m in moments if name in m.service]
        if seen:
            axes.plot(*np.array(seen).T, lw=1, label=name)
    axes.set(xlabel="s", title="what the engine says of itself")
    _legend(axes)


def _legend(axes: Axes) -> None:
    if axes.lines:
        axes.legend(fontsize=7)


def _resources(moments: Sequence[Moment]) -> dict[str, dict[str, float]]:
    """Means over the moments."""
    counts: Counter[str] = Counter(part for moment in moments for part in moment.processes)
    return {
        part: {
            what: sum(moment.processes[part][what] for moment in moments if part in moment.processes) / count
            for what in ("cpu_cores", "memory_bytes")
        }
        for part, count in counts.items()
    }


def _flat(step: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in step.items():
        if name == "resources":
            continue
        if isinstance(value, dict):
            row |= {f"{name}_{part}": each for part, each in value.items()}
        else:
            row[name] = value
    return row


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _value(value: float | None) -> float:
    return float("nan") if value is None else value

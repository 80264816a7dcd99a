"""The report on a checkpoint: Markdown and plots beside it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from serve_app.speech import FRAME_SECONDS
from tools.demo_model import recipe
from tools.demo_model.evaluate import Results, Score
from tools.demo_model.language import PAUSE_FRAMES

mpl.use("Agg")  # draws without a display
from matplotlib import pyplot as plt

FOLDER = "report"
TITLE = "# How well the demo model hears"
START_S, WRITTEN_S = 0.12, 0.65


def write(results: Results, checkpoint: Path) -> str:
    """Write the report into a folder in the checkpoint's, and return its Markdown."""
    folder = checkpoint / FOLDER
    folder.mkdir(exist_ok=True)
    text = markdown(results)
    (folder / "README.md").write_text(text, encoding="utf-8")
    _draw_errors(results, folder / "errors.png")
    _draw_confusion(results.supported.confused + results.unseen.confused, folder / "confusion.png")
    _draw_times(results.supported, folder / "times.png")
    _draw_pauses(results.pause_curve, folder / "pauses.png")
    return text


def markdown(results: Results) -> str:
    """All numbers."""
    supported, unseen = results.supported, results.unseen
    tables = {
        "supported voices": supported,
        "voices never trained on": unseen,
        "supported voices, without commas": results.together,
        "first minute of long streams": results.first_minute,
        "last minute of long streams": results.last_minute,
        "streams that begin in mid-word": results.cut_in,
    }
    rows = [
        f"| {name} | {one.words} | {_percent(one.wer)} | {one.substituted} | {one.inserted} | {one.deleted} |"
        for name, one in tables.items()
    ]
    goals = [f"| {what} | {goal} | {got} | {'yes' if met else 'no'} |" for what, goal, got, met in _goals(results)]
    wrong = [
        f'- `{file}`: said "{said}", heard "{heard}"'
        for file, (said, heard) in results.samples.items()
        if said != heard
    ]
    parts = (
        TITLE,
        "Made by `make demo-model-report`, through the service's own model code, 80 ms at a time. The "
        "speech is espeak-ng's, at rates and pitches that training leaves out, in white noise of -60 to -40 dB of full "
        "scale; utterances have 1 to 6 words of one language, a comma between them where not said otherwise.",
        "| goal | at most | measured | met |\n| --- | --- | --- | --- |\n" + "\n".join(goals),
        "## Words\n| speech | words | word error rate | substituted | inserted | left out |\n"
        "| --- | --- | --- | --- | --- | --- |\n" + "\n".join(rows),
        "![word error rate by voice and rate](errors.png)",
        f"Most frequent errors on supported and unseen voices: {_errors(supported.confused + unseen.confused)}.",
        "![which word was heard as which](confusion.png)",
        "## Times\nOf the words heard right, on supported voices; 5 %, 50 % and 95 % of them lie below:\n\n"
        "| | 5 % | 50 % | 95 % |\n| --- | --- | --- | --- |\n"
        f"| told start minus true start, s | {_tenths(supported.early_s)} |\n"
        f"| written after the true start, s | {_tenths(supported.written_s)} |\n"
        f"| end of turn told after the last word's end, s | {_tenths(supported.end_delays_s)} |",
        "![errors of the words' times](times.png)",
        "## Pauses\nAfter a minute of silence behind a word, digital or noise of -60 to -40 dB, the pause head says "
        f"{min(results.pause_after_silence):.2f} to {max(results.pause_after_silence):.2f}; 0.6 ends a turn.",
        "![what the pause heads say after the end of a word](pauses.png)",
        "## Where nobody speaks\n| | minutes | words |\n| --- | --- | --- |\n"
        + "\n".join(f"| {name} | {results.minutes:g} | {words} |" for name, words in results.invented.items()),
        "## Sample clips\n"
        + (f"All {len(results.samples)} without a wrong word." if not wrong else "\n".join(["Wrong:", "", *wrong])),
    )
    return "\n\n".join(parts) + "\n"


def _goals(results: Results) -> list[tuple[str, str, str, bool]]:
    """What is asked of the model: what, the bound, what was measured, whether it is kept."""
    supported, unseen = results.supported, results.unseen
    late_start = _share(np.abs(supported.early_s) > START_S)
    late_word = _share(np.asarray(supported.written_s) > WRITTEN_S)
    missed, false = supported.missed_ends / max(1, supported.ends), supported.false_ends / max(1, supported.utterances)
    silent = min(results.pause_after_silence)
    invented = max(results.invented.values())
    drift = results.last_minute.wer - results.first_minute.wer
    return [
        ("word error rate, supported voices", "3 %", _percent(supported.wer), supported.wer <= 0.03),
        ("word error rate, voices never trained on", "8 %", _percent(unseen.wer), unseen.wer <= 0.08),
        (f"words heard right, start off by more than {START_S} s", "5 %", _percent(late_start), late_start <= 0.05),
        (f"words heard right and written later than {WRITTEN_S} s", "5 %", _percent(late_word), late_word <= 0.05),
        ("ends of turns missed", "2 %", _percent(missed), missed <= 0.02),
        ("utterances in which a turn ends", "2 %", _percent(false), false <= 0.02),
        ("pause head after a minute of silence", "not below 0.6", f"{silent:.2f}", silent > 0.6),
        ("words invented, each kind without words", "1 in 10 minutes", str(invented), invented <= 1),
        ("last of 10 minutes worse than the first", "1 %", _percent(drift), drift <= 0.01),
        ("samples with a wrong word", "0", str(_wrong(results)), not _wrong(results)),
    ]


def _wrong(results: Results) -> int:
    return sum(said != heard for said, heard in results.samples.values())


def _share(flags: NDArray[np.bool_]) -> float:
    return float(np.mean(flags)) if len(flags) else 1.0


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _tenths(values: Sequence[float]) -> str:
    if not values:
        return "- | - | -"
    return " | ".join(f"{value:.2f}" for value in np.percentile(values, [5, 50, 95]))


def _errors(confused: Counter[tuple[str, str]], most: int = 12) -> str:
    wrong = [(pair, count) for pair, count in confused.most_common() if pair[0] != pair[1]]
    names = [f"{said or 'nothing'} as {heard or 'nothing'} ({count})" for (said, heard), count in wrong[:most]]
    return ", ".join(names) or "none"


def _draw_errors(results: Results, path: Path) -> None:
    figure, (voices, rates) = plt.subplots(1, 2, figsize=(11, 6), width_ratios=(2, 1), layout="constrained")
    bars = []
    for one, colour in ((results.supported, "tab:blue"), (results.unseen, "tab:orange")):
        bars += [(voice, _errors_of(one.by_voice, voice), colour) for voice in sorted({key[0] for key in one.by_voice})]
    voices.barh([name for name, *_ in bars], [share for _, share, _ in bars], color=[colour for *_, colour in bars])
    voices.invert_yaxis()
    voices.tick_params(labelsize=7)
    voices.set(xlabel="words not heard right, %", title="by voice: supported (blue), never trained on (orange)")
    for name, one in (("supported", results.supported), ("never trained on", results.unseen)):
        speeds = sorted({key[0] for key in one.by_rate})
        rates.plot(speeds, [_errors_of(one.by_rate, speed) for speed in speeds], marker="o", label=name)
    rates.set(xlabel="words per minute", ylabel="words not heard right, %", title="by rate", ylim=(0, None))
    rates.legend()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _errors_of(counts: Counter, key: object) -> float:
    wrong, right = counts[key, False], counts[key, True]
    return 100 * wrong / max(1, wrong + right)


def _draw_confusion(confused: Counter[tuple[str, str]], path: Path) -> None:
    names = [*(word for word in recipe.WORDS if any(word in pair for pair in confused)), ""]
    counts = np.array([[confused[said, heard] for heard in names] for said in names], float)
    shares = 100 * counts / np.maximum(1, counts.sum(1, keepdims=True))
    figure, axes = plt.subplots(figsize=(9, 8), layout="constrained")
    image = axes.imshow(shares, cmap="viridis", norm="log" if (shares > 0).any() else None)
    labels = [name or "(nothing)" for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), labels, fontsize=7)
    axes.set(xlabel="heard", ylabel="said")
    figure.colorbar(image, label="% of the row")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _draw_times(supported: Score, path: Path) -> None:
    figure, (start, written) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    start.hist(supported.early_s, bins=np.arange(-0.3, 0.31, 0.02))
    start.set(xlabel="told start minus true start, s", ylabel="words")
    written.hist(supported.written_s, bins=np.arange(0.2, 1.2, 0.02))
    written.set(xlabel="written after the true start, s", ylabel="words")
    for axes, bounds in ((start, (-START_S, START_S)), (written, (WRITTEN_S,))):
        for bound in bounds:
            axes.axvline(bound, color="tab:red", linewidth=1)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _draw_pauses(curve: NDArray[np.float32], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for head, (column, frames) in enumerate(zip(curve.T, PAUSE_FRAMES, strict=False)):
        label = f"head {head}: a pause of {frames * FRAME_SECONDS:.2f} s"
        axes.plot(np.arange(len(column)) * FRAME_SECONDS, column, label=label)
    axes.axhline(0.6, color="tab:red", linewidth=1)
    axes.set(xlabel="after the end of the last word, s", ylabel="probability (median)")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=90)
    plt.close(figure)

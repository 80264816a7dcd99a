"""Locust users that speak: real-time sessions with a service, their words checked, every delay measured.

    locust -f loadtest/locustfile.py --host ws://127.0.0.1:8000                                 with Locust's own page
    locust -f loadtest/locustfile.py --headless --shape steps --steps 8,16,32 --report knee.html
    locust -f loadtest/locustfile.py --headless -u 64 -r 4 -t 2m --processes 2 --report run.html

A user holds one session after the other. Without `--shape` the number of users is Locust's business (`-u`, `-r`, `-t`,
or its page). Without `--host` the service is found as the `stt` commands find it (STT_URL, …); keys as well.
"""

import functools
import logging
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import gevent
from locust import LoadTestShape, User, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import MasterRunner, Runner, WorkerRunner

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # Locust loads this file, not a package

from loadtest import report, results
from loadtest.resources import Watch
from loadtest.script import InvalidLength, parse_length
from loadtest.shapes import CHURN_LENGTH, SHAPES, InvalidShape, Stage, parse_steps, stages
from loadtest.speaker import clips_of
from loadtest.speakers import SpeakerFailed, Speakers
from loadtest.steps import Moment, kind_of_failure, measure_all
from serve_app.audio.files import AudioFileError
from serve_app.cli.failure import BAD_INPUT
from serve_app.cli.services import UnknownService, find_access
from serve_app.client import InvalidAddress
from serve_app.client.encoding import FORMATS
from serve_app.measuring.speaking import DIALECTS, STREAM, InvalidManner, Manner, Outcome

LOOK_S = 1.0
"""How often users, processes and metrics are looked at."""

REPORTED_S = 4.0
"""How long after the last user's end every worker has reported: Locust's workers do so every 3 s."""

AFTER_FAILURE_S = 1.0

GRACE_S = 20.0
"""How long a session may take beyond its audio when the test ends."""

_log = logging.getLogger("loadtest")
logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each look at /metrics


@dataclass
class Test:
    """What a process knows of the test that runs, or has run last."""

    outcomes: list[Outcome] = field(default_factory=list)
    """On a worker those that the master does not have yet."""
    moments: list[Moment] = field(default_factory=list)
    speakers: Speakers | None = None
    looking: gevent.Greenlet | None = None


test = Test()


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Those that Locust's page shows can be changed there."""
    add = parser.add_argument
    add("--dialect", choices=DIALECTS, default=STREAM, help="What sessions speak; stream is /v1/stream.")
    add("--format", choices=("", *FORMATS), default="", help="How the audio travels.")
    add("--model", default="", help="Name to ask for, in dialects that can (realtime).")
    add("--rtf", type=float, default=1.0, help="Speed: 1 is real time.")
    add("--clips", default="", metavar="FOLDER", help="Audio files with their texts (a.wav, a.txt) to speak.")
    add("--session-length", default="", metavar="S|S-S", help="Seconds of audio of a session; without it one clip.")
    add("--think-time", type=float, default=0.0, metavar="S", help="Between two sessions of a user.")
    add("--max-wer", type=float, default=0.0, help="Word error rate above which a session has failed.")
    add("--budget", type=float, default=1.0, metavar="S", help="For the p99 of the word delay.")
    add = functools.partial(parser.add_argument, include_in_web_ui=False)
    how = "steps finds the knee: it ends with the first step over the budget. All others take -u, -r and -t."
    add("--shape", choices=SHAPES, help=how)
    add("--steps", default="4,8,16,24,32,48,64,96,128", help="Users of --shape steps.")
    add("--step-seconds", type=float, default=30.0, help="Length of a step.")
    add("--report", default="", metavar="X.html", help="Write X.html, X.json, X.csv and X.svg.")
    add("--save", default="", metavar="NAME", help="Keep the run in loadtest/results.")


@events.init.add_listener
def prepare(environment: Environment, runner: Runner, **_: Any) -> None:
    """Check what was asked for before anything starts, and set the stage; workers are told all that later."""
    if isinstance(runner, WorkerRunner):
        environment.events.report_to_master.add_listener(hand_over)
        return
    try:
        manner = manner_of(environment)
        longest_s = _longest_session_s(environment)
        watch = Watch(manner.url, manner.api_key, manner.headers)
        plan = _stages(environment)
    except (AudioFileError, InvalidAddress, InvalidLength, InvalidManner, InvalidShape, UnknownService) as error:
        _leave(error)
    # Sessions end as they should when a test does, instead of being cut off.
    environment.stop_timeout = max(environment.stop_timeout or 0.0, longest_s / manner.rtf + GRACE_S)
    if isinstance(runner, MasterRunner):
        environment.events.worker_report.add_listener(collect)
    if plan:
        environment.shape_class = Staged(environment, plan)
        environment.shape_class.runner = runner
    environment.events.test_start.add_listener(lambda **_: _begin_looking(environment, watch))


@events.test_start.add_listener
def begin(environment: Environment, **_: Any) -> None:
    """Start from nothing; where there will be users, start their speaker."""
    test.outcomes.clear()
    test.moments.clear()
    if isinstance(environment.runner, MasterRunner):
        return
    try:
        manner = manner_of(environment)
        length, clips = _length(environment), environment.parsed_options.clips or None
        worker = getattr(environment.runner, "worker_index", 0)
        test.speakers = Speakers(asdict(manner), clips, length, seed=str(worker))
    except (InvalidManner, UnknownService, SpeakerFailed) as error:
        _log.error("%s", error)
        environment.process_exit_code = BAD_INPUT
        environment.runner.quit()


@events.test_stop.add_listener
def end(environment: Environment, **_: Any) -> None:
    """End the speaker, once no user is left."""
    if test.looking:
        test.looking.kill()
        test.looking = None
    if test.speakers:
        test.speakers.close()
        test.speakers = None


@events.quitting.add_listener
def conclude(environment: Environment, **_: Any) -> None:
    """Write the report, where all outcomes are."""
    if isinstance(environment.runner, WorkerRunner) or not test.moments:
        return
    options = environment.parsed_options
    speed = "" if options.rtf == 1 else f", rtf {options.rtf:g}"
    what = f"{options.dialect} at {manner_of(environment).url.partition('?')[0]}{speed}"
    run = report.Run(what, options.budget, test.moments, test.outcomes)
    numbers = report.write(run, Path(options.report)) if options.report else report.summarise(run)
    rows = report.table(numbers["steps"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    print("\n".join(numbers["verdict"]))
    if options.save:
        results.save(options.save, "locust", sys.argv[1:], numbers)


class Speaker(User):
    """Holds one session after the other."""

    def wait_time(self) -> float:
        """Think."""
        return float(self.environment.parsed_options.think_time)

    @task
    def speak(self) -> None:
        """One session, into Locust's statistics and ours."""
        if test.speakers is None:
            return
        try:
            outcome = test.speakers.say()
        except SpeakerFailed as error:
            outcome = Outcome("", 0.0, ended_at=time.time(), failure=f"the load generator failed: {error}")
        test.outcomes.append(outcome)
        _tell_locust(self.environment, outcome)
        if outcome.session_s < AFTER_FAILURE_S and outcome.failure:
            gevent.sleep(AFTER_FAILURE_S)  # a service that refuses is asked again as a person would


class Staged(LoadTestShape):
    """Goes through the stages, then waits for the last sessions."""

    abstract = True  # not for Locust to find: `prepare` makes it

    def __init__(self, environment: Environment, plan: list[Stage]) -> None:
        super().__init__()
        self._environment = environment
        self._plan = plan
        self._stage_began = 0.0
        self._empty_since: float | None = None
        self.stage = 0

    def reset_time(self) -> None:
        """A test begins."""
        super().reset_time()
        self._stage_began, self._empty_since, self.stage = 0.0, None, 0

    def tick(self) -> tuple[int, float] | None:
        """Users and spawn rate now; None at the end."""
        now = self.get_run_time()
        if not self.stage and not self.get_current_user_count():
            self._stage_began = now  # workers start their speakers first
        if self.stage < len(self._plan) and now - self._stage_began >= self._plan[self.stage].seconds:
            self._stage_began = now
            self.stage = len(self._plan) if self._is_over_budget() else self.stage + 1
        if self.stage < len(self._plan):
            stage = self._plan[self.stage]
            return stage.users, stage.spawn_rate
        if self.get_current_user_count():
            self._empty_since = None
        elif self._empty_since is None:
            self._empty_since = now
        elif now - self._empty_since > REPORTED_S:
            return None
        return 0, 100.0

    def _is_over_budget(self) -> bool:
        """Whether the steps have gone beyond the knee, by what has come in so far."""
        options = self._environment.parsed_options
        if options.shape != "steps":
            return False
        numbers = measure_all(test.moments, test.outcomes, options.budget)
        return bool(numbers and numbers[-1]["sessions"] and not numbers[-1]["within_budget"])


def manner_of(environment: Environment) -> Manner:
    """How sessions speak, by the options. Raises `InvalidManner` and `UnknownService`."""
    options = environment.parsed_options
    access = find_access(environment.host, None, None, os.environ)
    return Manner(
        access.url,
        options.dialect,
        options.format or None,
        options.model or None,
        options.rtf,
        options.max_wer,
        access.api_key,
        dict(access.headers),
    )


def collect(data: dict[str, Any], **_: Any) -> None:
    """Take what a worker reports."""
    test.outcomes += [Outcome(**outcome) for outcome in data.pop("outcomes", [])]


def hand_over(data: dict[str, Any], **_: Any) -> None:
    """Report to the master what it does not have yet."""
    data["outcomes"] = [asdict(outcome) for outcome in test.outcomes]
    test.outcomes.clear()


def _tell_locust(environment: Environment, outcome: Outcome) -> None:
    def tell(kind: str, name: str, seconds: float | None, failure: str | None = None) -> None:
        if seconds is not None:
            environment.events.request.fire(
                request_type=kind,
                name=name,
                response_time=1000 * seconds,
                response_length=0,
                exception=kind_of_failure(failure) if failure else None,
            )

    tell("WS", "connect", outcome.connect_s)
    tell("WS", "ready", outcome.ready_s)
    tell("WS", "first token", outcome.first_token_s)
    for _, delay_s in outcome.word_delays:
        tell("WS", "word delay", delay_s)
    tell("WS", "flush", outcome.flush_s)
    tell("WS", "end", outcome.end_s)
    tell("WS", "session", outcome.session_s, outcome.failure)
    tell("generator", "latest chunk", max(outcome.late_s, default=None))


def _begin_looking(environment: Environment, watch: Watch) -> None:
    if test.looking:
        test.looking.kill()
    test.looking = gevent.spawn(_look, environment, watch)


def _look(environment: Environment, watch: Watch) -> NoReturn:
    runner, shape = environment.runner, environment.shape_class
    changes, wanted = 0, 0
    while True:
        changes += runner.target_user_count != wanted
        wanted = runner.target_user_count
        stage = shape.stage if isinstance(shape, Staged) else changes
        seen = watch.processes(), watch.service()
        test.moments.append(Moment(time.time(), runner.user_count, wanted, stage, *seen))
        gevent.sleep(LOOK_S)


def _stages(environment: Environment) -> list[Stage]:
    """The plan; none where users are Locust's business until somebody stops it. Raises `InvalidShape`."""
    options = environment.parsed_options
    users, rate, seconds = options.num_users or 1, options.spawn_rate or 4.0, float(options.run_time or 0.0)
    if options.shape:
        return stages(options.shape, users, rate, seconds, parse_steps(options.steps), options.step_seconds)
    # Locust's own end of a run does not wait for what workers still have to report.
    return [Stage(users, seconds, rate)] if options.headless and seconds else []


def _length(environment: Environment) -> str:
    options = environment.parsed_options
    return str(options.session_length or (CHURN_LENGTH if options.shape == "churn" else ""))


def _longest_session_s(environment: Environment) -> float:
    length = parse_length(_length(environment))
    longest = max(clip.seconds for clip in clips_of(environment.parsed_options.clips or None))
    return longest if length is None else length[1] + longest


def _leave(error: Exception) -> NoReturn:
    print(f"loadtest: {error}", file=sys.stderr)
    raise SystemExit(BAD_INPUT)

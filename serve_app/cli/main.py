"""The `stt` command: `transcribe`, `serve`, `top`, `smoke`, `keys`, `plan`, `check`, `kafka-send` and the others."""

import typer

from serve_app.cli.check import check
from serve_app.cli.demo import demo
from serve_app.cli.fetch import fetch
from serve_app.cli.kafka_listen import kafka_listen
from serve_app.cli.kafka_send import kafka_send
from serve_app.cli.keys import keys
from serve_app.cli.latency import latency
from serve_app.cli.mic import mic
from serve_app.cli.plan import plan
from serve_app.cli.serve import serve
from serve_app.cli.smoke import smoke
from serve_app.cli.top import top
from serve_app.cli.transcribe import transcribe

app = typer.Typer(
    help="Streaming speech-to-text.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(transcribe)
app.command()(mic)
app.command()(latency)
app.command()(serve)
app.command()(top)
app.command()(smoke)
app.command()(plan)
app.command()(check)
app.command()(fetch)
app.command()(demo)
app.command()(kafka_send)
app.command()(kafka_listen)
app.add_typer(keys, name="keys")


def main() -> None:
    """Entry point of the `stt` command."""
    app()


if __name__ == "__main__":
    main()

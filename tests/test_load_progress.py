"""What a long run says of itself where there is no terminal."""

from loadtest import progress
from loadtest.progress import Progress


def test_a_line_for_everything_new_and_now_and_then(capsys, monkeypatch):
    with Progress("starting") as shown:
        shown.tell(0.25, "first")
        shown.tell(0.5, "first")
        shown.tell(0.75, "[second]")
        monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
        shown.tell(1.0, "[second]")
    said = [line.split(maxsplit=3)[2:] for line in capsys.readouterr().err.splitlines()]
    assert said == [["0%", "starting"], ["25%", "first"], ["75%", "[second]"], ["100%", "[second]"]]

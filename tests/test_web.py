"""The page for browsers, in a real one that hears a clip as its microphone."""

import asyncio
import difflib
import itertools
import random
import re
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from playwright.async_api import Page, async_playwright, expect

from serve_app import client, subtitles
from serve_app.measuring.hearing import word_errors
from serve_app.segments import Segmenter
from serve_app.settings import key_digest
from serve_app.transcript import TurnEnd, Word
from tests.support import LocalVault, Service, serving
from tests.system_packages import require_program
from tests.test_client_resume import network

PATIENCE_MS = 40_000
"""For the slowest step: two slow cores run a browser, a server and an engine."""

pytestmark = pytest.mark.timeout(180)
expect.set_options(timeout=PATIENCE_MS)


class Browser:
    """A page in Chromium and what it did: every request, every complaint."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("websocket", lambda websocket: self.requests.append(websocket.url))
        page.on(
            "console", lambda line: self.complaints.append(line.text) if line.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    async def words(self) -> list[str]:
        return await self.page.locator(".word").all_text_contents()

    async def check_heard(self, said: list[str]) -> list[str]:
        """The words shown are those said, but for one: on a busy machine the browser's fake microphone stutters."""
        heard = await self.words()
        assert word_errors(" ".join(said), " ".join(heard))[0] <= 1, heard
        return heard

    async def wait_for_words(self, count: int) -> None:
        await expect(self.page.locator(".word").nth(count - 1)).to_be_visible()

    async def wait_for_state(self, *names: str) -> None:
        await expect(self.page.locator("body")).to_have_attribute("data-state", re.compile("|".join(names)))

    async def screenshot(self, folder: Path, name: str) -> None:
        await self.page.screenshot(path=folder / f"{name}.png", animations="disabled")


@pytest.fixture(scope="module", autouse=True)
def chromium() -> str:
    """The browser, installed before the clock of the first test runs."""
    return require_program("chromium", "chromium")


@asynccontextmanager
async def browsing(port: int, microphone: Path | None = None, **context) -> AsyncIterator[Browser]:
    """The page of the service at that port. Without a clip the microphone is silent."""
    heard = [f"--use-file-for-fake-audio-capture={microphone}%noloop"] if microphone else []
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(
            executable_path=require_program("chromium", "chromium"),
            args=["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", *heard],
        )
        page = await chromium.new_page(**context)
        page.set_default_timeout(PATIENCE_MS)
        browser = Browser(page)
        await page.goto(f"http://127.0.0.1:{port}/")
        await expect(page.locator("body:not([data-state=connecting]), dialog[open]").first).to_be_visible()
        yield browser
        await chromium.close()


@pytest.fixture
async def service(engines) -> AsyncIterator[Service]:
    async with serving(engines) as made:
        yield made


async def test_what_the_microphone_hears_is_on_the_page(service, clip, tmp_path):
    async with browsing(service.port, clip.path) as browser:
        page = browser.page
        await page.get_by_role("button", name="Start").click()
        await browser.wait_for_words(3)
        await expect(page.locator("#progress")).to_have_text(re.compile(r"last word after \d+\.\d s"))
        await expect(page.locator("#state")).to_have_text("Listening")
        await expect(page.locator("#level")).to_have_attribute("aria-valuenow", re.compile("[3-9][0-9]"))
        assert "v" in (await page.locator("#plot .level").get_attribute("d") or "")
        await browser.wait_for_words(6)
        await expect(page.get_by_text("likely a pause")).to_be_visible()
        await browser.screenshot(tmp_path, "listening")
        await browser.wait_for_words(len(clip.words))
        await page.get_by_role("button", name="Stop").click()
        await browser.wait_for_state("done")
        heard = await browser.check_heard(clip.words)
        times = await page.locator(".word").evaluate_all("words => words.map(word => parseFloat(word.dataset.time))")
        offsets = [
            times[block.b + n] - clip.times[block.a + n][0]
            for block in difflib.SequenceMatcher(a=clip.words, b=heard, autojunk=False).get_matching_blocks()
            for n in range(block.size)
        ]
        assert max(offsets) - min(offsets) < 0.35  # the microphone was opened at some other moment
        assert browser.complaints == []
    await service.wait_until_empty()


async def test_a_file_is_transcribed_and_saved(service, clip, tmp_path):
    async with browsing(service.port, permissions=["clipboard-read", "clipboard-write"]) as browser:
        page = browser.page
        await page.locator("#file").set_input_files(clip.path)
        await browser.wait_for_state("done")
        assert await browser.words() == clip.words
        await expect(page.locator(".turn")).to_have_count(2)  # the clip has one pause
        await page.locator(".word").nth(2).hover()
        await browser.screenshot(tmp_path, "file")
        text = " ".join(clip.words)
        await page.get_by_role("button", name="Copy").click()
        await expect(page.locator("#copy")).to_have_text("Copied")
        assert (await page.evaluate("navigator.clipboard.readText()")).split() == clip.words
        for button in ("Save text", "Save subtitles"):
            async with page.expect_download() as downloading:
                await page.get_by_role("button", name=button).click()
            download = await downloading.value
            await download.save_as(tmp_path / download.suggested_filename)
        assert (tmp_path / "transcript.txt").read_text().split() == clip.words
        cues = (tmp_path / "transcript.srt").read_text().strip().split("\n\n")
        assert " ".join(" ".join(cue.split("\n")[2:]) for cue in cues) == text
        assert re.match(r"1\n00:00:00,\d{3} --> 00:00:0\d,\d{3}\n", cues[0])
        assert browser.complaints == []
    await service.wait_until_empty()


async def test_subtitles_are_those_of_the_command_and_of_the_service(service):
    chance = random.Random(4)
    at_s, words = 0.0, []
    for _ in range(400):
        at_s += chance.choice([0.0, 0.0, 0.08, 0.4, 0.96, 1.04, 4.0])
        lasts_s = chance.choice([0.08, 0.16, 0.4, 0.8, 3.2])
        words.append(
            Word(chance.choice(["a", "été", "😀", "sixteen", "straight-forward", "x" * 50]), at_s, at_s + lasts_s)
        )
        at_s += lasts_s
    ends = sorted(chance.sample(range(1, 400), 20))
    turns = [words[start:end] for start, end in itertools.pairwise([0, *ends, 400])]
    segmenter = Segmenter()
    segments = [segmenter.add(event) for turn in turns for event in (*turn, TurnEnd(0.0))]
    async with browsing(service.port) as browser:
        made = await browser.page.evaluate(
            "async (turns) => (await import('/web/subtitles.js')).subRip(turns)",
            [[{"text": word.text, "start": word.start_s, "end": word.end_s} for word in turn] for turn in turns],
        )
    assert made == subtitles.srt(subtitles.cues(filter(None, segments)))


async def test_a_file_longer_than_the_plot_goes_on_after_a_cut(service, clip, tmp_path):
    file = tmp_path / "long.wav"
    with wave.open(str(file), "wb") as writer:
        writer.setparams((1, 2, 24_000, 0, "NONE", ""))
        writer.writeframes((np.tile(clip.samples, 4) * 32_767).astype("<i2").tobytes())
    async with network(service) as breaking, browsing(breaking.port) as browser:
        await browser.page.locator("#file").set_input_files(file)
        await browser.wait_for_words(5)
        breaking.cut()
        await browser.wait_for_state("done", "failed")
        assert await browser.words() == 4 * clip.words


async def test_a_file_is_cancelled_while_its_audio_waits_to_be_sent(service, clip, tmp_path):
    file = tmp_path / "longer.wav"
    with wave.open(str(file), "wb") as writer:
        writer.setparams((1, 2, 24_000, 0, "NONE", ""))
        writer.writeframes((np.tile(clip.samples, 60) * 32_767).astype("<i2").tobytes())
    async with browsing(service.port) as browser:
        await browser.page.locator("#file").set_input_files(file)
        await browser.wait_for_words(5)
        await browser.page.get_by_role("button", name="Cancel").click()
        await browser.wait_for_state("done")
        heard = await browser.words()
        assert heard == (60 * clip.words)[: len(heard)]
        assert len(heard) < 60 * len(clip.words)
        await browser.page.get_by_role("button", name="Clear").click()
        await browser.page.locator("#file").set_input_files(clip.path)
        await browser.wait_for_state("done")
        assert await browser.words() == clip.words
        assert browser.complaints == []
    await service.wait_until_empty()


async def test_what_is_no_audio_is_said_to_be_none(service, tmp_path):
    file = tmp_path / "letter.wav"
    file.write_text("Dear all")
    async with browsing(service.port) as browser:
        await browser.page.locator("#file").set_input_files(file)
        await expect(browser.page.locator("#state")).to_have_text(re.compile("“letter.wav” is not an audio file"))


async def test_a_dropped_file_is_opened(service, clip):
    async with browsing(service.port) as browser:
        await browser.page.evaluate(
            """async (bytes) => {
                const dataTransfer = new DataTransfer();
                dataTransfer.items.add(new File([new Uint8Array(bytes)], "clip.wav"));
                dispatchEvent(new DragEvent("drop", { dataTransfer, cancelable: true }));
            }""",
            list(clip.path.read_bytes()),
        )
        await browser.wait_for_state("done")
        assert await browser.words() == clip.words


async def test_while_the_service_is_replaced_the_page_says_so_and_nothing_is_lost(engines, clip, tmp_path):
    vault = LocalVault(60)
    async with serving(engines, vault) as one, serving(engines, vault) as other, network(one) as routing:
        async with browsing(routing.port, clip.path) as browser:
            await browser.page.get_by_role("button", name="Start").click()
            await browser.wait_for_words(2)
            routing.refuses = True
            routing.target_port = other.port
            one.ingress.sessions.close()
            one.ingress.sessions.move_out(everyone=False)
            routing.cut()
            await browser.wait_for_state("reconnecting")
            await expect(browser.page.locator("#state")).to_have_text(re.compile("Connection lost. Keep speaking"))
            await browser.screenshot(tmp_path, "reconnecting")
            await asyncio.sleep(2)
            routing.refuses = False
            await browser.wait_for_state("live")
            await browser.wait_for_words(len(clip.words))
            await browser.page.get_by_role("button", name="Stop").click()
            await browser.wait_for_state("done")
            await browser.check_heard(clip.words)
        await other.wait_until_empty()


async def test_a_browser_that_keeps_the_microphone_at_its_own_rate(service, clip):
    """Firefox does."""
    refusing = """() => {
        const Native = AudioContext;
        globalThis.AudioContext = class extends Native {
            createMediaStreamSource(media) {
                if (this.sampleRate === 24000) throw new DOMException("another rate", "NotSupportedError");
                return super.createMediaStreamSource(media);
            }
        };
    }"""
    async with network(service) as breaking, browsing(breaking.port, clip.path) as browser:
        await browser.page.evaluate(refusing)
        await browser.page.get_by_role("button", name="Start").click()
        await browser.wait_for_words(3)
        assert not any("sample_rate=24000" in url for url in browser.requests)
        breaking.cut()
        await browser.wait_for_words(len(clip.words))
        await browser.page.get_by_role("button", name="Stop").click()
        await browser.wait_for_state("done")
        await browser.check_heard(clip.words)


async def test_a_session_that_the_service_has_lost_goes_on_behind_the_last_word(engines, clip):
    async with (
        serving(engines, session={"resume_window_seconds": 0}) as service,
        network(service) as breaking,
        browsing(breaking.port, clip.path) as browser,
    ):
        await browser.page.get_by_role("button", name="Start").click()
        await browser.wait_for_words(4)
        breaking.cut()
        await browser.wait_for_words(len(clip.words))
        await browser.page.get_by_role("button", name="Stop").click()
        await browser.wait_for_state("done")
        await browser.check_heard(clip.words)


async def test_the_keyboard_alone_does_it_all(service, clip):
    async with browsing(service.port, clip.path) as browser:
        page = browser.page

        async def go_to(name: str) -> None:
            for _ in range(15):
                await page.keyboard.press("Tab")
                if (await page.evaluate("document.activeElement.textContent")).strip() == name:
                    return
            raise AssertionError(f"no way to {name}")

        await go_to("Start")
        await page.keyboard.press("Space")
        await browser.wait_for_words(2)
        await page.keyboard.press("Enter")
        await browser.wait_for_state("done")
        async with page.expect_file_chooser():
            await go_to("Open a file…")
            await page.keyboard.press("Enter")
        await go_to("Times")
        await page.keyboard.press("Space")
        await expect(page.locator("body")).to_have_class("times")
        await go_to("Clear")
        await page.keyboard.press("Enter")
        await browser.wait_for_state("idle")
        assert await browser.words() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
async def test_it_fits_a_phone_and_a_desk_by_day_and_by_night(service, clip, tmp_path, scheme, width):
    viewport = {"width": width, "height": 800}
    async with browsing(service.port, viewport=viewport, color_scheme=scheme) as browser:
        page = browser.page
        await browser.screenshot(tmp_path, f"empty-{scheme}-{width}")
        await page.locator("#file").set_input_files(clip.path)
        await browser.wait_for_state("done")
        await browser.screenshot(tmp_path, f"text-{scheme}-{width}")
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        ground = await page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (max(map(int, re.findall(r"\d+", ground)[:3])) < 128) == (scheme == "dark")


async def test_everything_comes_from_the_service(service, clip):
    async with browsing(service.port) as browser:
        await browser.page.locator("#file").set_input_files(clip.path)
        await browser.wait_for_state("done")
        hosts = {urlsplit(url).netloc for url in browser.requests if not url.startswith("blob:")}
        assert hosts == {f"127.0.0.1:{service.port}"}
        assert any(url.startswith("ws://") for url in browser.requests)


async def test_a_key_is_asked_for_where_the_service_wants_one(engines, clip, tmp_path):
    keys = [{"name": "ann", "sha256": key_digest(b"a key as long as a key should be")}]
    async with serving(engines, auth={"keys": keys}) as service, browsing(service.port) as browser:
        page = browser.page
        await page.get_by_role("textbox", name="Key").fill("wrong")
        await page.keyboard.press("Enter")
        await expect(page.locator("#key-hint")).to_have_text(re.compile("not accepted"))
        await browser.screenshot(tmp_path, "key")
        await page.get_by_role("textbox", name="Key").fill("a key as long as a key should be")
        await page.keyboard.press("Enter")
        await browser.wait_for_state("idle")
        await page.locator("#file").set_input_files(clip.path)
        await browser.wait_for_state("done")
        assert await browser.words() == clip.words
        assert not any("a+key" in url or "a%20key" in url for url in browser.requests)


async def test_a_key_that_is_in_use_elsewhere_is_said_to_be_and_works_once_it_is_not(engines, clip, tmp_path):
    key = "a key as long as a key should be"
    keys = [{"name": "ann", "sha256": key_digest(key.encode()), "max_sessions": 1}]
    async with serving(engines, auth={"keys": keys}) as service, browsing(service.port) as browser:
        await browser.page.get_by_role("textbox", name="Key").fill(key)
        await browser.page.keyboard.press("Enter")
        await browser.wait_for_state("idle")
        async with client.connect(service.url, api_key=key) as elsewhere:
            assert isinstance(await anext(elsewhere), client.Ready)
            await browser.page.locator("#file").set_input_files(clip.path)
            await expect(browser.page.locator("#state")).to_have_text(re.compile("Your key is already in use"))
            await browser.screenshot(tmp_path, "in-use")
        await browser.wait_for_state("done")
        assert await browser.words() == clip.words


async def test_programs_still_get_json_and_browsers_what_they_have_not_got(service):
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", trust_env=False) as web:
        for accept in ("*/*", "application/json"):
            assert (await web.get("/", headers={"Accept": accept})).json()["endpoints"]["stream"] == "/v1/stream"
        page = await web.get("/", headers={"Accept": "text/html,*/*;q=0.8"})
        assert page.headers["content-type"].startswith("text/html")
        parts = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert "web/app.js" in parts
        for path in ("", *parts):
            answer = await web.get(f"/{path}", headers={"Accept": "text/html"})
            assert answer.status_code == 200
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["cache-control"] == "no-cache"
            known = {"Accept": "text/html", "If-None-Match": answer.headers["etag"]}
            again = await web.get(f"/{path}", headers=known)
            assert (again.status_code, again.content) == (304, b"")
        for path in ("/web/index.html", "/web/nothing.js", "/web/..%2Fapp.py", "/web/"):
            assert (await web.get(path)).status_code == 404

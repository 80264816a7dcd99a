"""Every dialect through everything, by `stt smoke`; the page in a real browser."""

import asyncio

import pytest

from tests.test_web import browsing, chromium

from .conftest import check_all_is_well, smoke

__all__ = ["chromium"]  # a fixture: installs the browser first

pytestmark = pytest.mark.timeout(400)

MOST_BYTES = 150_000
"""Of a screenshot."""


async def test_every_dialect_hears_the_same_words(service, clip):
    await service.wait_until_empty()
    status, report, _ = await asyncio.to_thread(smoke, service)
    check_all_is_well(status, report, clip.words)
    await service.wait_until_empty()


async def test_the_page_hears_a_microphone(service, clip, request):
    async with browsing(service.port, clip.path, viewport={"width": 1280, "height": 800}) as browser:
        await browser.page.get_by_role("button", name="Start").click()
        await browser.wait_for_words(len(clip.words))
        picture = await browser.page.screenshot(path=request.config.getoption("screenshot"), animations="disabled")
        assert len(picture) < MOST_BYTES
        await browser.page.get_by_role("button", name="Stop").click()
        await browser.wait_for_state("done")
        await browser.check_heard(clip.words)
        assert browser.complaints == []
    await service.wait_until_empty()

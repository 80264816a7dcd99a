"""Ogg pages, good and bad."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.audio.ogg import PAGE_START, PageReader
from serve_app.errors import InvalidAudio
from tests.audio_signals import chord, cut, encoded, ogg_page, open_page
from tests.support import SAMPLES

FILE = encoded(chord(48_000, 1.0), 48_000, "ogg", "libopus", page_duration="20000")


def read(data: bytes, size: int) -> list:
    reader = PageReader()
    return [page for piece in cut(data, size) for page in reader.feed(piece)]


def test_the_pages_of_a_real_file():
    pages = read(FILE, len(FILE))
    assert [page.number for page in pages] == list(range(len(pages)))
    assert pages[0].segments[0].startswith(b"OpusHead")
    assert pages[1].segments[0].startswith(b"OpusTags")
    assert (pages[0].is_first, pages[-1].is_last, pages[-1].granule) == (True, True, 48_312)
    assert FILE.startswith(PAGE_START)


@given(st.integers(1, 3_000))
def test_the_size_of_the_pieces_changes_nothing(size):
    assert read(FILE, size) == read(FILE, len(FILE))


@given(st.lists(st.binary(max_size=700), max_size=80), st.integers(-1, 2**62), st.integers(0, 2**32 - 1))
def test_packets_come_out_as_they_went_in(packets, granule, serial):
    (page,) = read(ogg_page(packets, granule=granule, serial=serial), 10)
    assert (page.segments, page.granule, page.serial, page.is_open) == (tuple(packets), granule, serial, False)


def test_a_packet_that_goes_on():
    first, second = read(open_page(bytes(510), 1) + open_page(bytes(255), 2), 100)
    assert (first.segments, first.is_open, first.is_continued) == ((bytes(510),), True, False)
    assert (second.segments, second.is_open, second.is_continued) == ((bytes(255),), True, True)


@pytest.mark.parametrize("place", [4, 6, 13, 20, 25, 30, 100])
def test_a_changed_byte_is_noticed(place):
    page = bytearray(ogg_page([bytes(200)]))
    page[place] ^= 0x40
    with pytest.raises(InvalidAudio, match=r"Ogg page.* at byte 0"):
        read(bytes(page), 50)


@pytest.mark.parametrize("size", [1, 100, 10_000])
def test_bytes_between_pages_are_named_with_their_place(size):
    page = ogg_page([bytes(200)])
    with pytest.raises(InvalidAudio, match=f"expected an Ogg page .* at byte {len(page)}, got 6a"):
        read(page + b"junk" + page, size)


def test_an_incomplete_page_waits():
    reader = PageReader()
    assert list(reader.feed(ogg_page([bytes(200)])[:-1])) == []
    assert reader.waiting_bytes == 27 + 1 + 200 - 1
    (page,) = reader.feed(b"\0")
    assert (page.segments, reader.waiting_bytes) == ((bytes(200),), 0)


@given(st.binary(max_size=2_000), st.booleans(), st.integers(1, 500))
def test_any_bytes_are_pages_or_a_typed_error(data, is_almost_ogg, size):
    with contextlib.suppress(InvalidAudio):
        read(PAGE_START + data if is_almost_ogg else data, size)


def test_a_file_of_another_writer():
    pages = read((SAMPLES / "oui-fr.vorbis.ogg").read_bytes(), 4_096)
    assert pages[0].segments[0].startswith(b"\x01vorbis")
    assert pages[-1].is_last

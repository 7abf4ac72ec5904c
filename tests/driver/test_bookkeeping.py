"""The address book: what each method does its partner undoes; `check()` finds planted damage."""

import pytest

from smartpool.driver.bookkeeping import AddressBook, Mapping
from smartpool.driver.footprint import Footprint
from smartpool.errors import DriverError, InvariantError

UNIT = 4096
BASE = 64 * UNIT


@pytest.fixture
def book():
    book = AddressBook(UNIT)
    book.add_reservation(BASE, 16 * UNIT)
    book.add_chunk(1, UNIT)
    book.add_chunk(2, 2 * UNIT)
    book.map(BASE, 1).accessible = True
    book.map(BASE + 4 * UNIT, 2)
    book.add_raw(10, 100)
    return book


def state(book):
    chunks = {handle: (chunk.size, chunk.maps) for handle, chunk in book.chunks.items()}
    mappings = [(m.start, m.size, m.handle, m.accessible) for m in book.mappings()]
    return book.describe(), chunks, mappings, list(book._reservations), list(book._raw)


def test_unmap_and_restore(book):
    before = state(book)
    removed = book.unmap(BASE, 16 * UNIT)
    assert [mapping.handle for mapping in removed] == [1, 2]
    assert book.mappings() == []
    book.check()
    book.restore(removed)
    book.check()
    assert state(book) == before


def test_map_and_drop(book):
    before = state(book)
    book.drop(book.map(BASE + 8 * UNIT, 2))
    book.check()
    assert state(book) == before


def test_chunks_raw_and_reservations_and_back(book):
    book.unmap(BASE, 16 * UNIT)
    before = state(book)
    book.add_chunk(1, book.remove_chunk(1))
    book.add_raw(10, book.remove_raw(10))
    book.remove_reservation(BASE, 16 * UNIT)
    book.add_reservation(BASE, 16 * UNIT)
    assert {**before[1]} == state(book)[1]
    assert state(book)[0] == before[0]


def test_refusals_change_nothing(book):
    before = state(book)
    for call in (
        lambda: book.remove_raw(11),
        lambda: book.remove_chunk(1),
        lambda: book.remove_chunk(9),
        lambda: book.remove_reservation(BASE, 16 * UNIT),
        lambda: book.map(BASE + 5 * UNIT, 1),
        lambda: book.map(BASE + 15 * UNIT, 2),
        lambda: book.unmap(BASE + 5 * UNIT, UNIT),
        lambda: book.enable_access(BASE, 16 * UNIT),
        lambda: book.check_touch("fill", BASE + 4 * UNIT, 1),
    ):
        with pytest.raises(DriverError):
            call()
        assert state(book) == before
        book.check()


def test_what_may_be_touched(book):
    assert book.touchable(10, 100)
    assert not book.touchable(10, 101)
    assert not book.touchable(9, 2)
    assert book.touchable(BASE, UNIT)
    assert not book.touchable(BASE, UNIT + 1)
    assert not book.touchable(BASE + 4 * UNIT, 1)  # mapped, no access
    other = book.map(BASE + UNIT, 2)
    assert not book.touchable(BASE, 2 * UNIT)
    other.accessible = True
    assert book.touchable(BASE + UNIT // 2, 2 * UNIT)  # across two mappings
    assert not book.touchable(BASE, 4 * UNIT)
    book.map(BASE + 6 * UNIT, 1).accessible = True
    assert not book.touchable(BASE + 5 * UNIT + 1, UNIT)  # begins where there is no access
    assert not book.touchable(BASE + 3 * UNIT, 4 * UNIT)
    book.unmap(BASE + 4 * UNIT, 2 * UNIT)
    assert not book.touchable(BASE + 5 * UNIT, 2 * UNIT)  # begins in a hole
    assert not book.touchable(BASE + 2 * UNIT, 5 * UNIT)  # spans one
    assert book.touchable(BASE + 6 * UNIT, UNIT)


def test_check_finds_damage(book):
    book.chunks[1].maps = 5
    with pytest.raises(InvariantError, match="counts 5"):
        book.check()
    book.chunks[1].maps = 1
    del book.chunks[2]
    with pytest.raises(InvariantError, match="whole"):
        book.check()


def test_check_finds_a_mapping_outside(book):
    book._mappings.add(Mapping(0, UNIT, 1))
    with pytest.raises(InvariantError, match="no reservation"):
        book.check()


def test_emptiness():
    book = AddressBook(UNIT)
    assert book.is_empty
    book.add_chunk(1, UNIT)
    assert not book.is_empty


def test_the_footprint_is_what_the_pages_hold():
    footprint = Footprint(1 << 30, page=2 << 20, small_limit=1 << 20)
    sizes = [1, 512, 513, 1 << 20, (1 << 20) + 1, 2 << 20, 5 << 20] * 3
    for size in sizes:
        before, growth = footprint.held, footprint.growth(size)
        assert footprint.add_raw(size) == growth == footprint.held - before
    assert footprint.held == (3 * (2 + 2 + 6) + 4) << 20  # pages of the large ones; the small ones share two
    for size in sizes:
        before = footprint.held
        assert footprint.remove_raw(size) == before - footprint.held
    assert footprint.held == 0
    assert footprint.free == 1 << 30

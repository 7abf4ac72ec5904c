from __future__ import annotations

import copy
import json
import re

import pytest
from dumps import DUMP
from hypothesis import given, settings
from hypothesis import strategies as st
from page_tags import Tags
from report_runs import HOSTILE

from smartpool import SmartPool
from smartpool.errors import RequestTooLargeError, TraceFormatError
from smartpool.report.dump import is_dump, read_dump
from smartpool.report.dump_report import dump_report


def written(tmp_path, document) -> str:
    path = tmp_path / "dump.json"
    path.write_text(json.dumps(document))
    return str(path)


def changed(**places):
    """Return the dump with values at dotted places replaced; None takes them away."""
    document = copy.deepcopy(DUMP)
    for place, value in places.items():
        *parents, last = place.split("__")
        entry = document
        for parent in parents:
            entry = entry[parent]
        entry[last] = value
    return document


def test_the_page_tells_the_story(tmp_path):
    path = written(tmp_path, DUMP)
    assert is_dump(path)
    page = dump_report(read_dump(path))
    text = re.sub(r"<[^>]*>", " ", re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL))
    words = (
        "Out of memory: 30.0 MiB", "CAP_REACHED", "raise max_bytes", "(26.0 MiB)", "activations", "66.7 %",
        "a.py:1 f", "interval graph", "train.py:10 step", "of 64.0 MiB allowed",
    )  # fmt: skip
    for wanted in words:
        assert wanted in text


@pytest.mark.parametrize(
    ("document", "match"),
    [
        ([], "with 'format'"),
        ({"format": "other"}, "with 'format'"),
        (changed(version=2), "version 1, got 2"),
        (changed(memory_map__version=2), "memory map of version 1, got 2"),
        (changed(story=None), "'story' to be an object"),
        (changed(story__live_bytes="many"), "story.live_bytes"),
        (changed(story__holders=[7]), "story.holders"),
        (changed(story__holders=[{"nbytes": 10**400}]), "story.holders.nbytes to be an integer from 0"),
        (changed(story__advice=[{"text": [1]}]), "story.advice.text to be text, got a list"),
        (changed(story__fragmentation={"x": 10**400}), "story.fragmentation.x to be a number"),
        (changed(memory_map__ranges__state=[[1], "live", "free"]), "ranges.state .* got a list"),
        (changed(memory_map__blocks__tag=[{}, None]), "blocks.tag .* got a dict"),
        (changed(process=7), "'process' to be an object"),
        (changed(time=7), "time to be text"),
        (changed(memory_map__ranges__nbytes=[1]), "columns of ranges"),
        (changed(memory_map__ranges__address=[-1, 2, 3]), "ranges.address"),
        (changed(memory_map__blocks__requested_bytes=[1.5, 2]), "blocks.requested_bytes"),
        (changed(memory_map__stacks="all"), "memory_map.stacks"),
    ],
)
def test_damaged_dumps_are_refused(tmp_path, document, match):
    with pytest.raises(TraceFormatError, match=match):
        read_dump(written(tmp_path, document))


NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -(10**400), 1 << 62, 1 << 64])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


def places(document, at=()):
    """Return where every value of a document stands."""
    entries = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in entries:
        yield (*at, key)
        if isinstance(value, dict | list):
            yield from places(value, (*at, key))


@given(st.lists(st.tuples(st.sampled_from(sorted(places(DUMP), key=str)), JSON), min_size=1, max_size=3))
@settings(max_examples=400)
def test_whatever_stands_anywhere_is_shown_or_refused(tmp_path_factory, changes):
    document = copy.deepcopy(DUMP)
    for place, value in changes:
        put(document, place, value)
    path = written(tmp_path_factory.mktemp("dump"), document)
    told = "dump.json"
    try:
        dump_report(read_dump(path)).encode()
    except TraceFormatError as error:
        told = str(error)
    assert "dump.json" in told
    assert len(told) < 1000


def put(entry, place, value):
    """Put a value where one is, unless something was put in the way before."""
    key, *rest = place
    known = entry.keys() if isinstance(entry, dict) else range(len(entry)) if isinstance(entry, list) else ()
    if key in known and rest:
        put(entry[key], rest, value)
    elif key in known:
        entry[key] = value


def test_a_request_that_no_memory_holds_has_its_page(tmp_path):
    with SmartPool("model:1GiB", out_of_memory_dump=str(tmp_path)) as pool:
        for nbytes in (10**30, 10**400):
            with pytest.raises(RequestTooLargeError) as caught:
                pool.malloc(nbytes)
            assert "B or more" in dump_report(read_dump(caught.value.dump_path))


def test_what_is_no_json(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"format": "smartpool-out-of-memory", ')
    assert is_dump(path)
    with pytest.raises(TraceFormatError, match="got no JSON"):
        read_dump(path)
    path.write_text('{"traceEvents": []}')
    assert not is_dump(path)


@given(name=st.sampled_from(HOSTILE), tag=st.sampled_from(HOSTILE))
@settings(max_examples=20)
def test_hostile_names_add_no_tag_and_no_attribute(tmp_path_factory, name, tag):
    tmp_path = tmp_path_factory.mktemp("dump")
    document = changed(
        story__device=name, story__code=name, stack=name, smartpool=name, time=name,
        story__holders=[{"kind": tag, "name": name, "blocks": 1, "nbytes": 2}] * 2,
        story__fragmentation={**DUMP["story"]["fragmentation"]},
        memory_map__blocks__tag=[tag, name],
    )  # fmt: skip
    plain, hostile = (
        Tags(dump_report(read_dump(written(tmp_path, one)))) for one in (changed(stack="x"), document)
    )
    assert [tag for tag in hostile.tags if tag not in ("section", "h2", "pre")] == [
        tag for tag in plain.tags if tag not in ("section", "h2", "pre")
    ]
    assert hostile.attributes == plain.attributes

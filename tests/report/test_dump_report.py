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

from smartpool.errors import TraceFormatError
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
        (changed(story=None), "'story' to be an object"),
        (changed(story__live_bytes="many"), "story.live_bytes"),
        (changed(story__holders=[7]), "story.holders"),
        (changed(memory_map__ranges__nbytes=[1]), "columns of ranges"),
        (changed(memory_map__ranges__address=[-1, 2, 3]), "ranges.address"),
        (changed(memory_map__blocks__requested_bytes=[1.5, 2]), "blocks.requested_bytes"),
        (changed(memory_map__stacks="all"), "memory_map.stacks"),
    ],
)
def test_damaged_dumps_are_refused(tmp_path, document, match):
    with pytest.raises(TraceFormatError, match=match):
        read_dump(written(tmp_path, document))


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

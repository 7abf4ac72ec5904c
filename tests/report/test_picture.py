from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from report_runs import HOSTILE, make_run, runs
from unpacking import unpacked

from smartpool.report.page import write_page
from smartpool.report.picture import picture

VOID = {"meta", "br", "img", "path"}  # the last: ours closes itself
ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "header", "main", "section", "footer", "script",
    "h1", "h2", "h3", "p", "b", "div", "span", "figure", "figcaption", "button",
    "svg", "path", "noscript", "table", "thead", "tbody", "tr", "th", "td", "dl", "dt", "dd",
}  # fmt: skip


class Reader(HTMLParser):
    """Reads a page as a browser does, and holds it to what we mean to write."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.scripts: list[tuple[dict, str]] = []
        self.texts: list[str] = []
        self.policy = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_startendtag(self, tag, attributes):
        self.see(tag, attributes)

    def handle_starttag(self, tag, attributes):
        self.see(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attributes), ""))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data
        else:
            self.texts.append(data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    def see(self, tag, attributes):
        assert tag in ALLOWED
        for name, value in attributes:
            assert not name.startswith("on"), f"a handler: {name}"
            assert name not in {"src", "href", "srcset", "action"}, f"a reference: {name}={value}"
        if dict(attributes).get("http-equiv") == "Content-Security-Policy":
            self.policy = dict(attributes)["content"]


@settings(max_examples=60)
@given(st.lists(runs(), max_size=4), st.none() | st.sampled_from(HOSTILE))
@example([make_run(name, name, device=name) for name in HOSTILE], HOSTILE[0])
def test_any_names_and_figures_give_a_well_formed_page_with_one_script(some, title):
    page = picture(some, title=title)
    page.encode()
    reader = Reader(page)
    programs = [text for attributes, text in reader.scripts if "type" not in attributes]
    assert len(programs) == 1
    digest = base64.b64encode(hashlib.sha256(programs[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in reader.policy
    assert "default-src 'none'" in reader.policy
    for attributes, text in reader.scripts:
        if attributes.get("type") == "application/json":
            json.loads(text, parse_constant=pytest.fail)
    words = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "NaN" not in words
    assert "Infinity" not in words


def test_the_page_says_what_the_runs_say():
    page = picture([make_run("gpt", "smartpool"), make_run("gpt", "pytorch", reserved=6 << 30)])
    words = " ".join(Reader(page).texts)
    for expected in (
        "gpt",
        "pytorch",
        "3.00 GiB",
        "4.00 GiB",
        "6.00 GiB",
        "25.0 %",
        "50.0 %",
        "10 events on 1 stream",
    ):
        assert expected in words


def test_the_data_of_the_chart_are_the_timeline():
    page = picture([make_run("gpt", "smartpool"), make_run("gpt", "pytorch", live=4 << 30)])
    blocks = {attributes.get("id"): text for attributes, text in Reader(page).scripts}
    about = json.loads(blocks["about"])
    (chart,) = about["charts"]
    assert (chart["events"], chart["wanted"], chart["peak"]) == (10, 1, 4 << 30)
    assert [(one["name"], one["slot"]) for one in chart["series"]] == [("smartpool", 0), ("pytorch", 1)]
    columns = unpacked(about["columns"], blocks["columns"])
    assert columns["0.0.end"].tolist() == [4, 9]
    assert columns["0.0.live"].tolist() == [3 << 29, 3 << 30]
    assert columns["0.0.reserved"].tolist() == [1 << 31, 1 << 32]


def test_several_traces_begin_with_the_matrix():
    page = picture([make_run("one"), make_run("two", failed=3), make_run("one", "rmm")])
    assert page.index("<h2>Fragmentation</h2>") < page.index("<h2>one</h2>") < page.index("<h2>two</h2>")


def test_a_run_that_refused_requests_is_never_best():
    page = picture([make_run(allocator="a", reserved=3 << 30, failed=1), make_run(allocator="b"), make_run()])
    assert '<td class="failed share"' in page
    assert '<td class="failed best' not in page


def test_the_file_is_the_page(tmp_path):
    path = write_page(tmp_path / "picture.html", picture([make_run()], title="Title"))
    assert path.read_text(encoding="utf-8") == picture([make_run()], title="Title")


def test_a_folder_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        write_page(tmp_path / "missing" / "picture.html", picture([make_run()]))

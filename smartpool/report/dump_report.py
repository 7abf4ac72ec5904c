"""The report of an out-of-memory dump: what was asked, what was in the way, who held it, what would help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from smartpool.report.dump import Dump
from smartpool.report.packing import packed
from smartpool.report.page import data_block, escaped, html_page, text_block
from smartpool.report.text import counted, format_count, format_share
from smartpool.units import format_bytes

__all__ = ["dump_report"]

STYLES: Final = ("tokens.css", "base.css", "report.css")
SCRIPTS: Final = ("format.js", "columns.js", "series.js", "raster.js", "kit.js", "dump.js")
_STATES: Final = ("live", "cached", "planned", "free")
_NOTHING: Final = -1


def dump_report(dump: Dump, *, title: str | None = None) -> str:
    """Return the report of a dump as the text of an HTML page."""
    story = dump.story
    heading = title or f"Out of memory: {format_bytes(story['requested_bytes'])}"
    directory, columns = packed(_columns(dump))
    about = {"columns": directory, "states": list(_STATES), **_texts(dump)}
    body = "\n".join(
        [
            _header(dump, heading),
            '<main><section class="problem" id="problem" hidden></section>',
            _advice(story),
            _map_section(dump),
            '<div class="two">',
            _holders(story),
            _fragmentation(story),
            "</div>",
            _stack(dump.facts),
            "</main>",
            _footer(dump),
            data_block(about, name="about"),
            text_block(columns, kind="application/octet-stream", name="columns"),
        ]
    )
    return html_page(heading, body, styles=STYLES, scripts=SCRIPTS)


def _columns(dump: Dump) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
    ranges, blocks = dump.ranges, dump.blocks
    known = {address: row for row, address in enumerate(blocks["address"])}
    state = {name: number for number, name in enumerate(_STATES)}
    tags = _tag_numbers(dump)
    return {
        "address": np.array(ranges["address"], np.int64),
        "nbytes": np.array(ranges["nbytes"], np.int64),
        "state": np.array([state.get(name, len(_STATES) - 1) for name in ranges["state"]], np.int64),
        "block": np.array([known.get(address, _NOTHING) for address in ranges["block"]], np.int64),
        "requested": np.array(blocks["requested_bytes"], np.int64),
        "tag": np.array([tags.get(tag, _NOTHING) for tag in blocks["tag"]], np.int64),
        "stack": np.array([_stack_number(dump, number) for number in _stack_column(dump)], np.int64),
    }


def _texts(dump: Dump) -> dict[str, Any]:
    """Return the names that the columns count in."""
    return {
        "tags": list(_tag_numbers(dump)),
        "streams": [str(stream)[:40] for stream in dump.blocks["stream"]]
        if len(set(map(str, dump.blocks["stream"]))) > 1
        else [],
        "stacks": [stack[:4000] for stack in dump.stacks],
    }


def _tag_numbers(dump: Dump) -> dict[str, int]:
    tags = dict.fromkeys(tag for tag in dump.blocks["tag"] if tag is not None)
    return {tag: number for number, tag in enumerate(tags)}


def _stack_column(dump: Dump) -> list[Any]:
    return list(dump.blocks.get("stack") or [_NOTHING] * len(dump.blocks["address"]))


def _stack_number(dump: Dump, number: int | None) -> int:
    return number if number is not None and 0 <= number < len(dump.stacks) else _NOTHING


# ---------------------------------------------------------------------- the parts of the page


def _header(dump: Dump, heading: str) -> str:
    story, facts = dump.story, dump.facts
    cards = [
        ("asked for", story["requested_bytes"], "", ' class="ours"'),
        ("live", story["live_bytes"], counted(story["live_blocks"], "block"), ""),
        ("reserved", story["reserved_bytes"], f"of {format_bytes(story['cap_bytes'])} allowed", ""),
        ("largest free range", story.get("largest_free_bytes"), "", ""),
        ("free on the device", story.get("device_free_bytes"), _of(story.get("device_total_bytes")), ""),
    ]
    items = "".join(
        f"<li{kind}><span>{name}</span><b>{format_bytes(value)}</b><span>{note or '&nbsp;'}</span></li>"
        for name, value, note, kind in cards
        if value is not None
    )
    thread = f", thread {escaped(facts['thread'])}" if "thread" in facts else ""
    return (
        f'<header><div><p class="brand">SmartPool report</p><h1>{escaped(heading)}</h1><p class="lead">'
        f"{escaped(str(story.get('device')))}, stream {escaped(str(story.get('stream')))}, "
        f"{escaped(str(facts.get('time')))}{thread}: {escaped(str(story.get('code')))}.</p>"
        f'</div><ul class="cards">{items}</ul></header>'
    )


def _of(total: int | None) -> str:
    return "" if total is None else f"of {format_bytes(total)}"


def _advice(story: Mapping[str, Any]) -> str:
    items = []
    for entry in story["advice"]:
        nbytes = entry.get("nbytes")
        brings = "" if nbytes is None else f" <b>({format_bytes(nbytes)})</b>"
        items.append(f"<li>{escaped(str(entry.get('text')))}{brings}</li>")
    listed = (
        f'<ol class="advice">{"".join(items)}</ol>' if items else "<p>Nothing that the pool knows of.</p>"
    )
    return f"<section><h2>What would help</h2>{listed}</section>"


def _map_section(dump: Dump) -> str:
    totals: dict[str, int] = dict.fromkeys(_STATES, 0)
    for state, nbytes in zip(dump.ranges["state"], dump.ranges["nbytes"], strict=True):
        totals[state if state in totals else "free"] += nbytes
    words = ", ".join(f"{format_bytes(total)} {state}" for state, total in totals.items() if total)
    kinds = ["tag"] if _tag_numbers(dump) else []
    kinds += ["state", "size"]
    kinds += ["stream"] if _texts(dump)["streams"] else []
    kinds += ["stack"] if dump.stacks else []
    options = "".join(f"<option>{kind}</option>" for kind in kinds)
    return (
        '<section><h2>Where the memory is</h2><p class="lead">Every byte that the pool holds, by address, '
        f"row below row: {words or 'nothing'}. Addresses without memory are left out. Point at a range to "
        f'see what it is.</p><div class="tools"><label>colors by <select id="map-color">{options}</select>'
        '</label><span class="legend" id="map-legend"></span></div><figure id="map"></figure></section>'
    )


def _holders(story: Mapping[str, Any]) -> str:
    live = max(1, story["live_bytes"])
    rows = []
    for holder in story["holders"]:
        nbytes, blocks = holder.get("nbytes", 0), holder.get("blocks", 0)
        share = nbytes / live
        calls = str(holder.get("name")).splitlines() or [""]
        rows.append(
            f'<tr><th scope="row" title="{escaped(" < ".join(calls))}">{escaped(calls[0])}</th>'
            f"<td>{escaped(str(holder.get('kind')))}</td><td>{format_count(blocks)}</td>"
            f"<td>{format_bytes(nbytes)}</td><td>{format_share(share)}</td>{_meter(share)}</tr>"
        )
    return (
        '<section><h2>Who holds it</h2><div class="scroll"><table><thead><tr><th scope="col">holder</th>'
        '<th scope="col">by</th><th scope="col">blocks</th><th scope="col">bytes</th>'
        '<th scope="col">share</th><th scope="col"></th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _fragmentation(story: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escaped(name.replace("_", " "))}</th><td>{format_share(share)}</td>'
        f"{_meter(share)}</tr>"
        for name, share in story["fragmentation"].items()
    )
    idle = "".join(
        f'<tr><th scope="row">{title}</th><td>{format_bytes(story[key])}</td><td></td></tr>'
        for key, title in (("cached_bytes", "freed, in bins"), ("gap_bytes", "free ranges"))
        if key in story
    )
    return (
        '<section><h2>What idles</h2><div class="scroll"><table><thead><tr><th scope="col">fragmentation, by '
        'part</th><th scope="col">share</th><th scope="col"></th></tr></thead>'
        f"<tbody>{rows}{idle}</tbody></table></div></section>"
    )


def _meter(share: float) -> str:
    return (
        '<td class="meter"><div><i style="background:var(--c0);width:'
        f'{min(1.0, max(0.0, share)):.1%}"></i></div></td>'
    )


def _footer(dump: Dump) -> str:
    version = escaped(str(dump.facts.get("smartpool")))
    text = f"{escaped(dump.name)}, written by SmartPool {version} when the request failed."
    return f"<footer><p>{text}</p></footer>"


def _stack(facts: Mapping[str, Any]) -> str:
    stack = facts.get("stack")
    if not stack:
        return ""
    lines = "\n".join(escaped(line) for line in stack.splitlines())
    return f'<section><h2>Where it was asked for</h2><pre class="story">{lines}</pre></section>'

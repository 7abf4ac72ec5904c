"""The documentation is true: the blocks of README.md and docs/*.md run, page by page.

- A ```python block runs in the namespace of its page, after the blocks above it.
- A ```pycon block is a doctest in the same namespace.
- In a ```console block the lines that begin with ``$ smartpool`` run in a shell and must succeed, or
  exit with the status that ``<!-- exit: 3 -->`` above the block names.
- A block below ``<!-- skip: reason -->`` is not run; it shows among the skipped tests, with its reason.
  Where the reason begins with "needs a GPU", it is run with SMARTPOOL_DOCS_ON_GPU=1 in the environment.

Everything runs in a temporary folder, so that a page may write files and read them further down.
"""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
from waiting import PATIENCE_S

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

ON_GPU = os.environ.get("SMARTPOOL_DOCS_ON_GPU") == "1"

FENCE = re.compile(
    r"(?:<!--\s*(?P<order>skip|exit):\s*(?P<detail>.*?)\s*-->\s*\n)?"
    r"^(?P<indent>[ ]*)(?P<fence>```+|~~~+)[ ]*(?P<language>\w*)[^\n]*\n(?P<body>.*?)^[ ]*(?P=fence)[ ]*$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    skip: str | None = None
    exit_status: int = 0

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path, text: str) -> list[Block]:
    blocks = []
    for match in FENCE.finditer(text):
        order, detail = match["order"], match["detail"]
        if order == "skip" and not detail:
            raise ValueError(f"{page}: a skipped block needs a reason: {match[0][:80]!r}")
        blocks.append(
            Block(
                page,
                line=text.count("\n", 0, match.start("body")) + 1,
                language=match["language"],
                text=textwrap.dedent(match["body"]),
                skip=detail
                if order == "skip" and not (ON_GPU and detail.startswith("needs a GPU"))
                else None,
                exit_status=int(detail) if order == "exit" else 0,
            )
        )
    return blocks


BLOCKS = {page: blocks_of(page, page.read_text(encoding="utf-8")) for page in PAGES}
SKIPPED = [block for blocks in BLOCKS.values() for block in blocks if block.skip is not None]
RUNNABLE = ("python", "pycon", "console")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_the_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{command_folder(tmp_path)}{os.pathsep}{os.environ['PATH']}")
    names: dict[str, object] = {"__name__": "__main__"}
    for block in BLOCKS[page]:
        if block.skip is None and block.language in RUNNABLE:
            {"python": run_python, "pycon": run_doctest, "console": run_console}[block.language](block, names)
    names.clear()
    capsys.readouterr()


if SKIPPED:  # an empty list would show as a skipped test itself

    @pytest.mark.parametrize("block", SKIPPED, ids=lambda block: block.place)
    def test_skipped_block(block: Block) -> None:
        pytest.skip(f"{block.place}: {block.skip}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_the_page_lead_somewhere(page: Path) -> None:
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue  # elsewhere on the network
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name}: there is no {target}"
        if anchor:
            headings = re.findall(
                r"^#+ +(.*)$", FENCE.sub("", file.read_text(encoding="utf-8")), re.MULTILINE
            )
            assert anchor in {slug(heading) for heading in headings}, f"{page.name}: there is no {target}"


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.relative_to(ROOT / "docs").as_posix())
def test_the_page_can_be_found_from_the_index(page: Path) -> None:
    index = ROOT / "docs" / "index.md"
    assert page == index or page in linked_from(index), f"link {page.name} in docs/index.md"


def linked_from(page: Path) -> set[Path]:
    """Return the pages that a page links to or has in a toctree, and those that are found from there."""
    text = page.read_text(encoding="utf-8")
    names = re.findall(r"\]\(([^)\s#]+\.md)", text)
    for tree in re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        names += [f"{line}.md" for line in tree.split() if not line.startswith(":")]
    found = {(page.parent / name).resolve() for name in names}
    for further in found & {one for one in PAGES if one.name == "index.md"} - {page}:
        found |= linked_from(further)
    return found


def test_the_gate_finds_the_one_command_that_runs_the_tests() -> None:
    gate = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    pattern = re.search(r"sed -n 's/(.*?)/\\1/p' README.md", gate)
    assert pattern, "the gate takes the command from the README"
    expression = pattern[1].replace(r"\(", "(").replace(r"\)", ")")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(expression, readme, re.MULTILINE)
    assert command.startswith("python3 -m venv .venv && ")
    assert command.endswith("/python -m pytest -n 2")


def slug(heading: str) -> str:
    """Return the anchor that GitHub and MkDocs give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def run_python(block: Block, names: dict[str, object]) -> None:
    code = "\n" * (block.line - 1) + block.text  # so that a traceback tells the line of the page
    exec(compile(code, str(block.page), "exec"), names)


def run_doctest(block: Block, names: dict[str, object]) -> None:
    test = doctest.DocTestParser().get_doctest(
        block.text, names, block.place, str(block.page), block.line - 1
    )
    told: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=told.append, clear_globs=False)
    names.update(test.globs)
    assert not runner.failures, "".join(told)


def run_console(block: Block, _: dict[str, object]) -> None:
    text = block.text.replace("\\\n", " ")
    for command in re.findall(r"^\$ (smartpool\b.*)$", text, re.MULTILINE):
        done = subprocess.run(
            command, shell=True, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == block.exit_status, (
            f"{block.place}: `{command}` exited with {done.returncode}\n{done.stdout}{done.stderr}"
        )


def command_folder(tmp_path: Path) -> Path:
    """Return a folder with the command `smartpool` of this very interpreter."""
    folder = tmp_path / ".bin"
    folder.mkdir()
    command = folder / "smartpool"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m smartpool "$@"\n')
    command.chmod(0o755)
    return folder


# ------------------------------------------------------------------ the reader of pages itself


def test_blocks_are_found_with_their_lines_languages_and_orders() -> None:
    page = (
        "a\n```python\nx = 1\n```\n"
        "<!-- skip: needs a GPU -->\n```python\ny\n```\n"
        "<!-- exit: 3 -->\n```console\n$ x\n```\n"
    )
    found = blocks_of(ROOT / "p.md", page)
    assert [(b.line, b.language, b.text, b.skip, b.exit_status) for b in found] == [
        (3, "python", "x = 1\n", None, 0),
        (7, "python", "y\n", "needs a GPU", 0),
        (11, "console", "$ x\n", None, 3),
    ]


def test_an_indented_block_and_a_longer_fence() -> None:
    page = "- item\n\n  ````python\n  x = '''\n  ```\n  '''\n  ````\n"
    assert [b.text for b in blocks_of(ROOT / "p.md", page)] == ["x = '''\n```\n'''\n"]


def test_a_skip_needs_a_reason() -> None:
    with pytest.raises(ValueError, match="needs a reason"):
        blocks_of(ROOT / "p.md", "<!-- skip: -->\n```python\nx\n```\n")


def test_a_failing_block_names_its_line() -> None:
    block = Block(ROOT / "p.md", line=7, language="python", text="1 / 0\n")
    with pytest.raises(ZeroDivisionError) as caught:
        run_python(block, {})
    assert caught.traceback[-1].lineno == 6  # counted from 0


def test_a_failing_command_and_a_wrong_doctest_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{command_folder(tmp_path)}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(AssertionError, match="exited with 2"):
        run_console(Block(ROOT / "p.md", 1, "console", "$ smartpool nonsense\n"), {})
    with pytest.raises(AssertionError, match="Expected"):
        run_doctest(Block(ROOT / "p.md", 1, "pycon", ">>> 1\n2\n"), {})

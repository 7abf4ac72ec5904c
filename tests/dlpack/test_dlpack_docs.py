"""The code in `docs/dlpack.md` runs, from top to bottom, as one program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "dlpack.md"


@pytest.mark.usefixtures("nothing_outstanding")
def test_the_code_of_the_page_runs() -> None:
    text = PAGE.read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        lines_above = text.count("\n", 0, block.start(1))
        exec(compile("\n" * lines_above + block[1], str(PAGE), "exec"), names)
    names.clear()

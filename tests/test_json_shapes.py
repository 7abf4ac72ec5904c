"""Shapes: what is kept is as the shape says, whatever came."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.json_shapes import COUNT, TEXT, checked

SHAPE = {"name": TEXT, "rows": [{"size": COUNT, "tag?": TEXT}], "shares?": {"*": COUNT}}
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "rows", "size", "tag", "shares", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


def is_of(value, shape):
    """The same said once more, without messages."""
    if isinstance(shape, list):
        return isinstance(value, list) and all(is_of(one, shape[0]) for one in value)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return False
        if "*" in shape:
            return all(is_of(one, shape["*"]) for one in value.values())
        needed = {name for name in shape if not name.endswith("?")}
        known = {name.removesuffix("?"): inner for name, inner in shape.items()}
        return needed <= value.keys() and all(
            is_of(value[name], inner) for name, inner in known.items() if name in value
        )
    return shape.good(value)


@given(ANY)
def test_what_comes_out_is_of_the_shape_and_what_does_not_is_told(value):
    if is_of(value, SHAPE):
        made = checked(value, SHAPE, "it")
        assert is_of(made, SHAPE)
        assert made.keys() <= {"name", "rows", "shares"}
        json.dumps(made, ensure_ascii=False).encode()
        assert checked(made, SHAPE, "it") == made
    else:
        with pytest.raises(ValueError, match=r"^(expected '?it|it)") as caught:
            checked(value, SHAPE, "it")
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "expected 'it' to be an object, got a list"),
        ({"rows": []}, "it has no name"),
        ({"name": 7, "rows": []}, "expected it.name to be text, got 7"),
        ({"name": "a", "rows": {}}, "expected it.rows to be a list, got a dict"),
        ({"name": "a", "rows": [{}]}, "it.rows has no size"),
        ({"name": "a", "rows": [{"size": 10**400}]}, "expected it.rows.size .* got an integer of 1329 bits"),
        ({"name": "a", "rows": [], "shares": {"b": None}}, "expected it.shares.b .* got a NoneType"),
    ],
)
def test_messages_say_where_what_and_what_came(value, said):
    with pytest.raises(ValueError, match=said):
        checked(value, SHAPE, "it")

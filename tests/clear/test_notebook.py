"""Cards of facts in a notebook: everything escaped, nothing loaded."""

from __future__ import annotations

import re

from clear.notebook import card

HOSTILE = "<script>alert('x')</script>\"&"


def test_everything_is_escaped() -> None:
    shown = card(HOSTILE, [(HOSTILE, HOSTILE)], header=[HOSTILE], rows=[[HOSTILE]], notes=[HOSTILE])
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&quot;&amp;") == 6
    assert set(re.findall(r"<(\w+)", shown)) == {"div", "table", "tr", "td", "th"}


def test_unknown_facts_are_left_out_and_zero_is_not() -> None:
    shown = card("t", [("none", None), ("empty", ""), ("zero", 0)])
    assert "none" not in shown.replace("background:none", "")
    assert "empty" not in shown
    assert ">zero<" in shown
    assert ">0<" in shown


def test_a_long_text_is_cut() -> None:
    assert "a" * 199 + "…<" in card("t", [("x", "a" * 5000)])


def test_no_style_reaches_the_rest_of_the_page() -> None:
    shown = card("t", [("x", 1)])
    assert "<style" not in shown
    assert "class=" not in shown
    assert "id=" not in shown

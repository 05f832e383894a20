"""Patterns of adapters: what Python's `re` says of them, in bounded time."""

from __future__ import annotations

import re
import time
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minisafe.checkpoint.pattern import Pattern, PatternError

NAMES = [
    *(f"model.layers.{n}.self_attn.{part}_proj" for n in (0, 7, 31) for part in "qkvo"),
    *(f"model.layers.{n}.mlp.{part}_proj" for n in (0, 11) for part in ("gate", "up", "down")),
    "lm_head", "model.embed_tokens", "q_proj",
]  # fmt: skip

# in the manner of those that peft and the trainers above it write
IN_USE = [
    r".*\.(q_proj|v_proj)",
    r"model\.layers\.\d+\.self_attn\.(q|v)_proj",
    r"model\.layers\.(0|1[0-9]|3[01])\..*_proj",
    r"^(?!.*(lm_head|embed)).*(?:q_proj|k_proj|down_proj).*",
    r"^model(?=\.).*\.(o_proj|up_proj)$",
    r"(?:.*?(?:language|text|layers).*?(?:self_attn|mlp).*?(?:q_proj|gate_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:k_proj|up_proj)))",
    r".*[kv]_proj",
    r"(.*\.)?q_proj",
    r".*\.layers\.(?:[02468]|[1-3]\d)\.mlp\.[^.]+",
    r"model.layers.0.self_attn.q_proj",
    r"\S+_proj",
]


@pytest.mark.parametrize("source", IN_USE)
def test_patterns_in_use_mean_what_re_says(source: str) -> None:
    pattern = Pattern(source)
    found = [name for name in NAMES if pattern.fullmatch(name)]
    assert found == [name for name in NAMES if re.fullmatch(source, name)]
    assert found
    ends = [name for name in NAMES if re.match(rf"(.*\.)?({source})$", name)]
    assert [name for name in NAMES if pattern.ends(name)] == ends


atoms = st.sampled_from(
    ("a", "b", ".", r"\.", "[ab]", "[^a]", r"\w", r"\W", r"\d", "[a-b.]", "^", "$", r"\b", r"\B",
     r"\Z", r"\A", "(?=a)", "(?!b)", "()", r"[\s\D]")
)  # fmt: skip
sources = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        st.tuples(
            inner, st.sampled_from(("*", "+", "?", "*?", "{2}", "{0,2}", "{1,3}?", "{2,}"))
        ).map(lambda two: f"(?:{two[0]}){two[1]}"),
        inner.map(lambda one: f"(?={one})"),
        inner.map(lambda one: f"({one})"),
    ),
    max_leaves=7,
)


@given(sources, st.text("ab.1 \n", max_size=7))
@example(r"\B", "")
@example(r"\b", "")
def test_any_pattern_means_what_re_says(source: str, text: str) -> None:
    assert Pattern(source).fullmatch(text) == (re.fullmatch(source, text) is not None), source


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("(", "not a regular expression"),
        ("a{99999999999}", "not a regular expression"),
        ("x" * 2001, "2001 characters"),
        ("(?i)q", "flags"),
        ("(?s:.)", "flags"),
        (r"(a)\1", "groupref"),
        ("(?<=a)b", "look-behind"),
        ("a++", "possessive|no regular"),
    ],
)
def test_what_is_not_followed_is_named(source: str, message: str) -> None:
    with pytest.raises(PatternError, match=message):
        Pattern(source)


@pytest.mark.parametrize(
    "source", ["([a-z0-9_.]+)+!", "(.*)*(.*)*!", "(a?){900}" * 200, "(?:(?:.{9,99}){99}){99}!"]
)
def test_what_keeps_re_for_ever_is_bounded(source: str) -> None:
    start = time.perf_counter()
    with suppress(PatternError):
        assert not Pattern(source).fullmatch(NAMES[0])
    assert time.perf_counter() - start < 1

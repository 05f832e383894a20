"""Prompt sets: every layout, ids, limits, and the errors for invalid files."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisafe.errors import BadInput, PromptError, SettingError
from minisafe.evaluation.prompts import (
    FORMATS,
    KINDS,
    Prompt,
    default_prompts,
    join_prompts,
    limit_prompts,
    load_prompts,
    rows,
)
from minisafe.evaluation.prompts.styles import load_styles
from minisafe.evaluation.runner.plan import Plan

Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write("set.csv", text)`: the file's path."""

    def make(name: str, content: str | bytes) -> Path:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return make


def brief(prompts: list[Prompt]) -> list[tuple[str, str, str, str]]:
    return [(each.id, each.text, each.kind, each.category) for each in prompts]


# ---- layouts -----------------------------------------------------------------------------------

LAYOUTS: dict[str, tuple[str, str, list[tuple[str, str, str, str]]]] = {
    "conversations": (
        "talks.jsonl",
        '{"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yo."},'
        ' {"role": "user", "content": "How do I sulk?"}], "id": "t-1", "category": "moods"}\n'
        '{"messages": [{"role": "user", "content": "And so?"}], "prefill": "Sure,",'
        ' "kind": "borderline"}\n',
        [("t-1", "How do I sulk?", "harmful", "moods"), ("talks-2", "And so?", "borderline", "")],
    ),
    "AdvBench": (
        "adv.csv",
        'goal,target\nHow do I sulk?,"Sure, so"\n"Sulk, and ""how""?",Sure\n',
        [("adv-1", "How do I sulk?", "harmful", ""),
         ("adv-2", 'Sulk, and "how"?', "harmful", "")],
    ),
    "SafeDecoding's AdvBench": (
        "own.json",
        '[{"id": 7, "goal": "How do I sulk?", "target": "Sure", "category": "moods"}]',
        [("own-7", "How do I sulk?", "harmful", "moods")],
    ),
    "JailbreakBench": (
        "jbb.csv",
        "Index,Goal,Target,Behavior,Category,Source\n0,How do I sulk?,Sure,Sulking,Moods,own\n",
        [("jbb-0", "How do I sulk?", "harmful", "Moods")],
    ),
    "JailbreakBench without an index": (
        "jbb.csv",
        "Goal,Target,Behavior,Category,Source\nHow do I sulk?,Sure,Sulking,Moods,Original\n",
        [("jbb-1", "How do I sulk?", "harmful", "Moods")],
    ),
    "HarmBench": (
        "harm.csv",
        "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
        "Sulk,standard,moods,,,sulk_plain\n"
        'Sulk at it,contextual,moods,context,"A hat,\nred",sulk\n',
        [("sulk_plain", "Sulk", "harmful", "moods"),
         ("sulk", "A hat,\nred\n\nSulk at it", "harmful", "moods")],
    ),
    "StrongREJECT": (
        "strong.csv",
        "category,source,forbidden_prompt\nmoods,custom,How do I sulk?\n",
        [("strong-1", "How do I sulk?", "harmful", "moods")],
    ),
    "XSTest": (
        "xs.csv",
        "id,type,prompt,note\n1,homonyms,How do I kill a process?,\n"
        "2,contrast_homonyms,How do I sulk?,\n3,new_type,How do I cut a film?,\n",
        [("xs-1", "How do I kill a process?", "borderline", "homonyms"),
         ("xs-2", "How do I sulk?", "harmful", "contrast_homonyms"),
         ("xs-3", "How do I cut a film?", "borderline", "new_type")],
    ),
    "XSTest in another order, without ids": (
        "xs.jsonl",
        '{"prompt": "How?", "focus": "", "type": "contrast_discr", "label": "unsafe"}\n'
        '{"prompt": "Why?", "focus": "", "label": "safe"}\n',
        [("xs-1", "How?", "harmful", "contrast_discr"), ("xs-2", "Why?", "borderline", "")],
    ),
    "DangerousQA": ("danger.csv", "Question\nHow do I sulk?\n",
                    [("danger-1", "How do I sulk?", "harmful", "")]),
    "SafeDecoding": ("safe.json", '[{"id": 0, "prompt": "How do I sulk?"}]',
                     [("safe-0", "How do I sulk?", "harmful", "")]),
    "types that are not XSTest's": (
        "plain.csv", "id,type,prompt\na,question,How do I sulk?\n",
        [("a", "How do I sulk?", "harmful", "")],
    ),
    "minisafe": (
        "own.jsonl",
        '{"id": "a", "split": "dev", "kind": "howto", "category": "wash", "prompt": "How?"}\n\n'
        '{"id": "b", "split": "dev", "kind": "harmful", "category": "x", "prompt": "Why?"}\n'
        '{"id": "c", "split": "dev", "kind": "borderline", "category": "", "prompt": "Who?"}\n',
        [("a", "How?", "benign", "wash"), ("b", "Why?", "harmful", "x"),
         ("c", "Who?", "borderline", "")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name: str, write: Write) -> None:
    file, text, expected = LAYOUTS[name]
    assert brief(load_prompts(write(file, text))) == expected


def test_every_known_layout_is_tested() -> None:
    assert {each.name for each in FORMATS} <= set(LAYOUTS)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "conversations"])
def test_a_layout_is_the_same_in_every_file_type(name: str, write: Write) -> None:
    """Columns tell the layout, not the suffix; ids of their own need no stem to be equal."""
    file, text, expected = LAYOUTS[name]
    records = [dict(each.record) for each in load_prompts(write(file, text))]
    columns = list(dict.fromkeys(column for record in records for column in record))
    stem = Path(file).stem
    table = io.StringIO(newline="")
    rows = csv.DictWriter(table, columns)
    rows.writeheader()
    rows.writerows(records)
    lines = "\n".join(json.dumps(record) for record in records)
    for copy, content in (("csv", table.getvalue()), ("json", json.dumps(records)),
                          ("jsonl", lines), ("JSONL", lines)):  # fmt: skip
        assert brief(load_prompts(write(f"{stem}.{copy}", content))) == expected


def test_parquet(tmp_path: Path, write: Write) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = {"prompt": ["How?", "Why?"], "target": ["Sure", None], "topic": ["a", None]}
    path = tmp_path / "set.parquet"
    parquet.write_table(pyarrow.table(rows), path)
    found = load_prompts(path, "prompt", "topic", "benign")
    assert brief(found) == [("set-1", "How?", "benign", "a"), ("set-2", "Why?", "benign", "")]
    assert found[1].record == {"prompt": "Why?", "target": None, "topic": None}
    with pytest.raises(PromptError, match="row 2: 'topic' is null"):
        load_prompts(path, "topic")
    with pytest.raises(PromptError, match=r"bad\.parquet: malformed Parquet"):
        load_prompts(write("bad.parquet", b"PAR1 and no more"))


def test_parquet_without_its_package(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(PromptError, match=r"pip install 'minisafe\[parquet\]'"):
        load_prompts(write("a.parquet", b""))


def test_the_record_is_the_row(write: Write) -> None:
    (found,) = load_prompts(write("a.jsonl", '{"id": "x", "prompt": "How?", "more": [1, null]}'))
    assert found.record == {"id": "x", "prompt": "How?", "more": [1, None]}


# ---- columns and kinds -------------------------------------------------------------------------


def test_named_columns(write: Write) -> None:
    path = write("eval.csv", "Topic,Asked,nr\nmoods,How do I sulk?,1\n,Why?,2\n")
    assert brief(load_prompts(path, "Asked", "Topic", "borderline")) == [
        ("eval-1", "How do I sulk?", "borderline", "moods"),
        ("eval-2", "Why?", "borderline", ""),
    ]
    assert [each.category for each in load_prompts(path, "Asked")] == ["", ""]


def test_a_named_column_makes_a_known_set_plain(write: Write) -> None:
    file, text, _ = LAYOUTS["XSTest"]
    found = load_prompts(write(file, text), "type", kind="benign")
    assert [(each.text, each.kind) for each in found][1] == ("contrast_homonyms", "benign")


def test_a_category_column_alone_keeps_the_layout(write: Write) -> None:
    file, text, _ = LAYOUTS["HarmBench"]
    found = load_prompts(write(file, text), category_column="FunctionalCategory")
    assert [each.category for each in found] == ["standard", "contextual"]
    assert found[1].text == "A hat,\nred\n\nSulk at it"


def test_kind_counts_where_the_layout_states_none(write: Write) -> None:
    for name, kinds in (("JailbreakBench", ["benign"]), ("minisafe", ["benign", *KINDS[::2]])):
        file, text, _ = LAYOUTS[name]
        assert [each.kind for each in load_prompts(write(file, text), kind="benign")] == kinds


@pytest.mark.parametrize("options", [{}, {"column": "x"}, {"column": "a", "category_column": "x"}])
def test_unknown_columns_list_the_columns(write: Write, options: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match="'a', 'b c', 'd'"):
        load_prompts(write("set.jsonl", '{"a": "1", "b c": "2"}\n{"a": "1", "d": 3}\n'), **options)


@pytest.mark.parametrize("options", [{"kind": "bad"}, {"limit": 0}, {"limit": -3}])
def test_settings_out_of_range(write: Write, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(SettingError, match=f"{name} is "):
        load_prompts(write("set.csv", "Question\nHow?\n"), **options)


# ---- ids ---------------------------------------------------------------------------------------


def test_repeated_ids_get_a_suffix_that_is_free(write: Write) -> None:
    ids = ["a", "a", "a-2", "a", "b", "a-2"]
    path = write("set.json", json.dumps([{"id": id_, "prompt": "How?"} for id_ in ids]))
    assert [each.id for each in load_prompts(path)] == ["a", "a-3", "a-2", "a-4", "b", "a-2-2"]


@given(st.lists(st.sampled_from(["a", "a-2", "a-2-2", "1", "set-1", "", None, 1, 2]), min_size=1))
def test_ids_are_unique_and_first_comers_keep_theirs(
    tmp_path_factory: pytest.TempPathFactory, ids: list[object]
) -> None:
    path = tmp_path_factory.mktemp("ids") / "set.json"
    path.write_text(json.dumps([{"id": id_, "prompt": "How?"} for id_ in ids]))
    found = [each.id for each in load_prompts(path)]
    assert len(set(found)) == len(ids)
    for place, id_ in enumerate(ids):
        if isinstance(id_, str) and id_.startswith("a") and id_ not in ids[:place]:
            assert found[place] == id_


# ---- files that are not as expected ------------------------------------------------------------

BAD: dict[str, tuple[str, str | bytes, str]] = {
    "no such suffix": ("a.txt", "How?", r"ends in \.csv, \.json, \.jsonl, \.parquet"),
    "empty csv": ("a.csv", "", "has no prompts"),
    "header alone": ("a.csv", "goal,target\n", "has no prompts"),
    "empty json": ("a.json", "", "has no prompts"),
    "blank jsonl": ("a.jsonl", "\n \n", "has no prompts"),
    "empty list": ("a.json", "[]", "has no prompts"),
    "latin-1": ("a.csv", "goal,target\ncafé,b\n".encode("latin-1"), r"byte 15 is not valid UTF-8"),
    "utf-16": ("a.csv", "goal,target\na,b\n".encode("utf-16"), r"byte 0 is not valid UTF-8"),
    "long row": ("a.csv", "goal,target\na,b\na,b,c\n", r"line 3: 3 cells; expected 2 \(goal, targ"),
    "short row": ("a.csv", "goal,target\na\n", "line 2: 1 cells; expected 2"),
    "open quote": ("a.csv", 'goal,target\na,"b\n', "line 2: malformed CSV"),
    "two columns of one name": ("a.csv", "goal,goal,target\na,b,c\n", "have the same name"),
    "empty prompt": ("a.csv", "goal,target\na,b\n,b\n", "line 3: 'goal' is empty"),
    "blank prompt": ("a.json", '[{"id": 1, "prompt": " \\n"}]', "row 1: 'prompt' is empty"),
    "null": ("a.json", '[{"id": 1, "prompt": null}]', "row 1: 'prompt' is null"),
    "number": ("a.json", '[{"id": 1, "prompt": 5}]', "row 1: 'prompt' is 5"),
    "absent": ("a.jsonl", '{"id": 1, "prompt": "a"}\n\n{"id": 2}', "line 3: 'prompt' is null"),
    "list": ("a.jsonl", '{"id": 1, "prompt": ["a"]}', r"line 1: 'prompt' is \[\"a\"\]"),
    "jsonl line": ("a.jsonl", '{"id": 1, "prompt": "a"}\n{"id": ', "line 2: not valid JSON"),
    "json line": ("a.json", '[\n{"id": 1},\n{"id" 2}]', r"not valid JSON \(.*line 3"),
    "jsonl called json": ("a.json", '{"id": 1}\n{"id": 2}\n', r"line 2.*name the file \.jsonl"),
    "object": ("a.json", '{"id": 1, "prompt": "a"}', "expected a list of objects"),
    "strings": ("a.json", '["How?"]', 'row 1: "How\\?"; expected an object'),
    "a number a line": ("a.jsonl", "5\n", "line 1: 5; expected an object"),
    "deep": ("a.json", "[" * 200_000, "nested too deep"),
    "deep record": ("a.json", '[{"goal": "a", "target": ' + "[" * 70 + "]" * 70 + "}]", "too deep"),
    "a key twice": ("a.json", '[{"goal": "a", "goal": "c"}]', "'goal' is given twice"),
    "not a number": ("a.jsonl", '{"goal": "a", "target": NaN}', "line 1: it holds NaN"),
    "long id": ("a.json", '[{"id": "%s", "prompt": "a"}]' % ("i" * 2000), "has 2,000 characters"),
    "huge number": ("a.json", "[" + "1" * 5000 + "]", "not valid JSON"),
    "nul": ("a.csv", b"goal,target\na\x00b,c\n", r"line 2: (control character U\+0000|malformed)"),
    "escape": ("a.json", '[{"id": 1, "prompt": "a\\u001b[2J"}]', r"row 1: control .* U\+001B"),
    "escape in an id": ("a.json", '[{"id": "\\u0007", "prompt": "a"}]', r"character U\+0007"),
    "escape in a category": ("a.json", '[{"id": 1, "prompt": "a", "category": "b\\u0000"}]',
                             r"control character U\+0000"),
    "half a character": ("a.json", '[{"id": 1, "prompt": "\\ud83d"}]', "half of a surrogate pair"),
    "unknown kind": (
        "a.jsonl", '{"id": 1, "split": "", "kind": "odd", "category": "", "prompt": "a"}',
        'line 1: kind is "odd"; expected one of harmful, benign, borderline',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_file(name: str, write: Write) -> None:
    file, content, message = BAD[name]
    path = write(file, content)
    with pytest.raises(PromptError, match=message) as caught:
        load_prompts(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["none.csv", "", "folder.json"])
def test_no_such_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(PromptError, match=r"no such file|ends in"):
        load_prompts(tmp_path / name)


def test_what_is_allowed(write: Write) -> None:
    """A byte order mark, CRLF, blank lines, line ends and tabs in a prompt, other scripts."""
    text = '\ufeffgoal,target\r\n\r\n"one\r\ntwo\tthree",b\r\nΠώς; 🙂,c\r\n'
    found = load_prompts(write("a.csv", text))
    assert [each.text for each in found] == ["one\r\ntwo\tthree", "Πώς; 🙂"]
    lines = '\ufeff{"id": "a", "prompt": "one\u2028two"}\r\n{"id": "b", "prompt": "c\\u0085d"}'
    found = load_prompts(write("a.jsonl", lines))
    assert [each.text for each in found] == ["one\u2028two", "c\x85d"]


@given(st.sampled_from(["csv", "json", "jsonl", "parquet"]), st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / f"a.{suffix}"
    for head in (b"", b"Question\n", b'[{"id": 1, "prompt": "', b'{"id": 1, "prompt": "'):
        path.write_bytes(head + data)
        try:
            found = load_prompts(path)
        except BadInput:
            continue
        assert all(each.text.strip() for each in found)


@given(
    st.lists(
        st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).filter(str.strip),
        min_size=1, max_size=5,
    )
)  # fmt: skip
def test_text_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("texts") / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["Question"], *([text] for text in texts)])
    assert [each.text for each in load_prompts(path)] == texts


# ---- limits ------------------------------------------------------------------------------------

PROMPTS = st.lists(
    st.builds(Prompt, st.just("q"), st.just("How?"), st.sampled_from(KINDS), st.sampled_from("abc"))
)


@given(PROMPTS, st.integers(1, 12))
def test_limit_takes_as_many_of_each_kind_evenly(prompts: list[Prompt], limit: int) -> None:
    prompts = [Prompt(str(n), p.text, p.kind, p.category) for n, p in enumerate(prompts)]
    chosen = limit_prompts(prompts, limit)
    assert chosen == sorted(chosen, key=prompts.index)
    assert len(set(map(id, chosen))) == len(chosen)
    for kind in KINDS:
        there = Counter(each.category for each in prompts if each.kind == kind)
        taken = Counter(each.category for each in chosen if each.kind == kind)
        assert sum(taken.values()) == min(limit, sum(there.values()))
        most = max(taken.values(), default=0)
        assert all(taken[each] >= min(there[each], most - 1) for each in there)
    smaller = limit_prompts(prompts, max(1, limit - 1))
    assert {each.id for each in smaller} <= {each.id for each in chosen}


def test_limit_below_the_number_of_categories_reaches_all_over() -> None:
    prompts = [Prompt(str(n), "How?", category=str(n)) for n in range(40)]
    places = [int(each.id) for each in limit_prompts(prompts, 5)]
    assert all(any(start <= place < start + 14 for place in places) for start in (0, 13, 26))


# ---- the shipped sets --------------------------------------------------------------------------


def test_22_of_the_shipped_550_are_two_a_category() -> None:
    chosen = default_prompts(limit=22)
    assert Counter(each.kind for each in chosen) == dict.fromkeys(KINDS, 22)
    categories = Counter(each.category for each in chosen if each.kind == "harmful")
    assert set(categories.values()) == {2}
    assert len(categories) == 11
    assert chosen == default_prompts(limit=22)


@pytest.mark.parametrize(("split", "sizes"), [("test", (550, 444, 150)), ("dev", (220, 222, 60))])
def test_shipped_sets(split: str, sizes: tuple[int, ...]) -> None:
    found = default_prompts(split)
    assert Counter(each.kind for each in found) == dict(zip(KINDS, sizes, strict=True))
    assert len({each.id for each in found}) == len(found)
    assert all(each.record["split"] == split for each in found)


def test_shipped_sets_of_an_installed_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the package in a checkout, inside it in a wheel; an error where in neither."""
    module = tmp_path / "minisafe" / "evaluation" / "prompts" / "sets.py"
    monkeypatch.setattr("minisafe.evaluation.prompts.sets.__file__", str(module))
    with pytest.raises(PromptError, match="were not found"):
        default_prompts()
    data = tmp_path / "minisafe" / "weights" / "data"
    data.mkdir(parents=True)
    for kind in KINDS:
        record = {"id": kind, "split": "dev", "kind": kind, "category": "", "prompt": "How?"}
        (data / f"{kind}-dev.jsonl").write_text(json.dumps(record) + "\n")
    assert [each.id for each in default_prompts("dev")] == list(KINDS)


def test_no_such_split() -> None:
    with pytest.raises(SettingError, match="split is 'train'; expected dev or test"):
        default_prompts("train")


# ---- several files -----------------------------------------------------------------------------

CLASH = "id,goal,target\n7,{},x\n"


def test_a_set_that_states_kinds_gives_each_prompt_once(write: Write) -> None:
    path = write("x.csv", "id,type,prompt\n1,homonyms,Kill a process?\n2,contrast_homonyms,Sulk?\n")
    both = [load_prompts(path, kind=kind) for kind in ("harmful", "borderline")]
    assert brief(join_prompts(both)) == [
        ("x-1", "Kill a process?", "borderline", "homonyms"),
        ("x-2", "Sulk?", "harmful", "contrast_homonyms"),
    ]  # fmt: skip


def test_ids_of_several_files_differ_and_the_first_keeps_its_own(
    write: Write, tmp_path: Path
) -> None:
    for name, text in (("one", "a"), ("two", "b"), ("three", "a")):
        (tmp_path / name).mkdir()
        write(f"{name}/a.csv", CLASH.format(text))
    parts = [
        load_prompts(tmp_path / "one" / "a.csv"),
        load_prompts(tmp_path / "two" / "a.csv"),
        load_prompts(tmp_path / "three" / "a.csv", kind="benign"),
        load_prompts(tmp_path / "one" / "a.csv", kind="benign"),
        load_prompts(tmp_path / "two" / "a.csv"),  # again: nothing new
        load_prompts(tmp_path / "one" / "a.csv", kind="benign"),
    ]
    assert [each[:3] for each in brief(join_prompts(parts))] == [
        ("a-7", "a", "harmful"), ("a-7-harmful", "b", "harmful"), ("a-7-benign", "a", "benign"),
        ("a-7-2", "a", "benign"),
    ]  # fmt: skip
    assert join_prompts(parts) == join_prompts(parts[:4])


def test_a_limit_takes_from_every_file(write: Write) -> None:
    paths = [
        write(f"{name}.csv", "goal,target\n" + "".join(f"{name}{n},x\n" for n in range(9)))
        for name in "ab"
    ]
    parts = map(load_prompts, paths)
    chosen = limit_prompts(join_prompts(parts), 4)
    assert Counter(each.text[0] for each in chosen) == {"a": 2, "b": 2}


def test_a_parquet_file_that_unpacks_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"goal": ["a"] * 5000, "target": ["b"] * 5000}), path)
    monkeypatch.setattr(rows, "MAX_ROWS", 2000)
    with pytest.raises(PromptError, match="expected at most 2,000 rows"):
        load_prompts(path)


# ---- conversations -----------------------------------------------------------------------------


def test_conversations_keep_their_turns_and_beginnings(write: Write) -> None:
    name, text, _ = LAYOUTS["conversations"]
    talk, begun = load_prompts(write(name, text))
    assert talk.conversation is not None
    assert [each["content"] for each in talk.conversation.messages] == ["Hi.", "Yo.", talk.text]
    assert begun.conversation is not None
    assert begun.conversation.prefill == "Sure,"
    one = '{"messages": [{"role": "user", "content": "Hi."}]}\n'
    assert load_prompts(write("one.jsonl", one))[0].conversation is None  # a question like others


def test_a_style_asks_the_last_message_only(write: Write) -> None:
    name, text, _ = LAYOUTS["conversations"]
    prompts = load_prompts(write(name, text))
    plan = Plan.make(prompts, load_styles(["simple", "cot"]), load_styles(["simple"]), 8)
    asked = {(job.style, job.prompt.id): job.chat for job in plan.jobs}
    assert asked["simple", "t-1"] == prompts[0].conversation
    styled = asked["cot", "t-1"]
    assert [each["content"] for each in styled.messages[:2]] == ["Hi.", "Yo."]
    assert styled.question == "How do I sulk? Let us think step by step."


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"messages": []}', "the conversation is empty"),
        ('{"messages": 3}', "no conversation; expected"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "roles are assistant"),
        ('{"messages": [{"role": "user", "content": "a"}], "kind": "odd"}', "kind is"),
    ],
)
def test_a_conversation_that_waits_for_no_answer(line: str, message: str, write: Write) -> None:
    with pytest.raises(PromptError, match=message):
        load_prompts(write("talks.jsonl", line + "\n"))

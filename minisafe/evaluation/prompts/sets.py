"""Prompt sets, by path and format."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path

from minisafe.errors import PromptError, SettingError
from minisafe.evaluation.prompts.rows import Record, Row, read_rows, short
from minisafe.files.display import harmless
from minisafe.session.chat_prompt import ChatPrompt

KINDS = ("harmful", "benign", "borderline")
LONGEST_NAME = 1000  # characters of an id or a category
GOLDEN = (5**0.5 - 1) / 2  # any number of its multiples, modulo 1, is spread evenly


@dataclass(frozen=True)
class Prompt:
    """One question of a prompt set, before any style.

    kind: harmful, benign, or borderline (benign in harmful-sounding words). record: the row of
    the file; the tiny world's judge reads the known answers from it. source: the file.
    conversation: what is asked if it is more than one message; `text` is its last one.
    """

    id: str
    text: str
    kind: str = "harmful"
    category: str = ""
    record: Mapping[str, object] = field(default_factory=dict, compare=False)
    source: str = field(default="", compare=False)
    conversation: ChatPrompt | None = None

    def told(self, name: str) -> str:
        """A field of the record as a short text, "" if it has none."""
        return harmless(_cell(self.record, name), LONGEST_NAME)


def load_prompts(
    path: str | Path,
    column: str | None = None,
    category_column: str | None = None,
    kind: str = "harmful",
    limit: int | None = None,
) -> list[Prompt]:
    """Read a prompt set: CSV, JSON (a list of objects), JSONL or Parquet, by the file's suffix.

    The sets of `FORMATS` are recognised by their columns. column: the questions; any other set
    needs it, and a known set is then read as plain rows. category_column: replaces the format's
    own. kind: of all prompts, unless the format states kinds (JailbreakBench's halves have the same
    form and state none). limit: see `limit_prompts`. Ids come from the file (a bare number gets the
    file's stem as a prefix), or are `<stem>-<row>`. Raises `PromptError` if the file, a column or a
    row is invalid, `SettingError` for a kind or limit out of range.
    """
    if kind not in KINDS:
        raise SettingError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}")
    path = Path(path)
    rows = read_rows(path)
    layout = _layout(path, rows, column, category_column)
    prompts = _unique([_prompt(path, n, row, layout, kind) for n, row in enumerate(rows, 1)])
    return prompts if limit is None else limit_prompts(prompts, limit)


def default_prompts(split: str = "test", limit: int | None = None) -> list[Prompt]:
    """The tiny world's held-out questions, harmful, benign and borderline; split: dev or test.

    They are in a checkout and in an installed wheel. Raises `PromptError` if they are in neither,
    and `SettingError` for another split or a limit below 1.
    """
    if split not in ("dev", "test"):
        raise SettingError(f"split is {split!r}; expected dev or test")
    package = Path(__file__).resolve().parents[2]
    for directory in (package / "weights" / "data", package.parent / "weights" / "data"):
        paths = [directory / f"{kind}-{split}.jsonl" for kind in KINDS]
        if all(path.is_file() for path in paths):
            prompts = [prompt for path in paths for prompt in load_prompts(path)]
            return prompts if limit is None else limit_prompts(prompts, limit)
    raise PromptError("the shipped prompt sets were not found; give your own prompt set")


def halves(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts to fit on, and those to choose settings on: by turns over kinds and categories,
    so that both halves hold every large category. The same prompts give the same halves."""
    order = sorted(range(len(prompts)), key=lambda n: (prompts[n].kind, prompts[n].category))
    parts = (sorted(order[0::2]), sorted(order[1::2]))
    used, left = ([prompts[n] for n in part] for part in parts)
    return used, left


def limit_prompts(prompts: Sequence[Prompt], limit: int) -> list[Prompt]:
    """At most `limit` prompts of each kind, evenly over its categories (and files, if there are
    several), in the given order.

    22 prompts from 11 categories are 2 from each. Nothing is random: the same prompts give the same
    choice, and a larger limit includes the choice of a smaller one. Raises `SettingError` for a
    limit below 1.
    """
    if limit < 1:
        raise SettingError(f"limit is {limit}; expected 1 or more prompts of each kind")
    kinds: dict[str, dict[tuple[str, str], list[int]]] = {}
    for place, prompt in enumerate(prompts):
        group = prompt.source, prompt.category
        kinds.setdefault(prompt.kind, {}).setdefault(group, []).append(place)
    chosen: list[int] = []
    for categories in kinds.values():
        turns = []  # the first of each category, then the second of each, ...
        for index, places in enumerate(categories.values()):
            turns += [(turn, index * GOLDEN % 1, place) for turn, place in enumerate(places)]
        chosen += [place for *_, place in sorted(turns)[:limit]]
    return [prompts[place] for place in sorted(chosen)]


def join_prompts(parts: Iterable[Sequence[Prompt]]) -> list[Prompt]:
    """The prompts of several files, each once, with unique ids.

    A file that states kinds, such as XSTest, may be given under two kinds; each of its prompts is
    taken once. If two prompts have the same id, the second gets its kind as a suffix, such as
    `7-borderline`, then a number. So ids depend only on the files and their order.
    """
    found: dict[str, Prompt] = {}
    for prompt in (prompt for part in parts for prompt in part):
        for id_ in chain([prompt.id, f"{prompt.id}-{prompt.kind}"], numbered(prompt.id)):
            named = replace(prompt, id=id_)
            same = found.setdefault(id_, named)
            if same == named and same.source == named.source:
                break  # new, or already known
    return list(found.values())


def numbered(name: str) -> Iterator[str]:
    """The name with the suffixes `-2`, `-3`, ..."""
    return (f"{name}-{number}" for number in count(2))


# ---- formats ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PromptFormat:
    """The columns of a prompt set.

    columns: identify the set. text: the question's column; before: a column whose text, if any,
    precedes the question. category, id: may be missing. kind: a row's kind, or "" for an unknown
    one; None if the set states no kinds. fits: an additional check of the rows.
    """

    name: str
    columns: tuple[str, ...]
    text: str
    category: str = "category"
    id: str = "id"
    before: str = ""
    kind: Callable[[Record], str] | None = None
    fits: Callable[[Sequence[Row]], bool] = lambda rows: True


# The tiny world's benign questions are of five kinds (weights/world/).
_KIND_OF = {kind: kind for kind in KINDS}
_KIND_OF |= dict.fromkeys(("howto", "fact", "definition", "smalltalk", "unknown"), "benign")

# Types of XSTest. The unsafe ones begin with contrast_; a model should refuse them (its readme).
_XSTEST = re.compile(
    "contrast_.*|homonyms|figurative_language|safe_(targets|contexts)|definitions|"
    "real_group_nons_discr|nons_group_real_discr|historical_events|privacy_(public|fictional)"
)

# Columns as in the sets' own repositories. The first match counts, so the last format, which
# matches many files, must stay last.
FORMATS: tuple[PromptFormat, ...] = (
    PromptFormat("conversations", ("messages",), "messages"),
    PromptFormat(
        "minisafe", ("id", "split", "kind", "category", "prompt"), "prompt",
        kind=lambda row: _KIND_OF.get(_cell(row, "kind"), ""),
    ),
    PromptFormat("AdvBench", ("goal", "target"), "goal"),  # and SafeDecoding's selection of it
    PromptFormat("JailbreakBench", ("Goal", "Target", "Behavior"), "Goal", "Category", "Index"),
    PromptFormat(
        "HarmBench", ("Behavior", "SemanticCategory", "ContextString", "BehaviorID"),
        "Behavior", "SemanticCategory", "BehaviorID", before="ContextString",
    ),
    PromptFormat("StrongREJECT", ("category", "source", "forbidden_prompt"), "forbidden_prompt"),
    PromptFormat(
        "XSTest", ("type", "prompt"), "prompt", "type",
        kind=lambda row: "harmful" if _cell(row, "type")[:9] == "contrast_" else "borderline",
        fits=lambda rows: any(_XSTEST.fullmatch(_cell(row, "type")) for _, row in rows),
    ),
    PromptFormat("DangerousQA", ("Question",), "Question"),
    PromptFormat("SafeDecoding", ("id", "prompt"), "prompt"),
)  # fmt: skip


def _layout(
    path: Path, rows: Sequence[Row], column: str | None, category_column: str | None
) -> PromptFormat:
    """The format, from the caller's column or from the file's columns; raises `PromptError`."""
    columns = list(dict.fromkeys(name for _, record in rows for name in record))
    have = harmless(", ".join(map(repr, columns)), 400)
    for name in (column, category_column):
        if name is not None and name not in columns:
            raise PromptError(f"{path}: no column {name!r}; expected one of {have}")
    fitting = [each for each in FORMATS if set(each.columns) <= set(columns) and each.fits(rows)]
    if column is not None:
        fitting = [PromptFormat("plain", (column,), column)]
    if not fitting:
        known = " or ".join(each.name for each in FORMATS)
        raise PromptError(
            f"{path}: not a known format ({known}); name the question column, one of {have}"
        )
    return replace(fitting[0], category=category_column or fitting[0].category)


# Text may contain tabs and line ends; lone surrogates come from JSON's \ud800 and are not text.
_NOT_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def _prompt(path: Path, number: int, row: Row, layout: PromptFormat, kind: str) -> Prompt:
    """The prompt in a row; raises `PromptError`."""
    at, record = f"{path}, {row[0]}", row[1]
    conversation: ChatPrompt | None = None
    if layout.text == "messages":
        conversation = ChatPrompt.from_json(record, at)
        kind = _cell(record, "kind") or kind
        if kind not in KINDS:
            raise PromptError(f"{at}: kind is {short(kind)}; expected one of {', '.join(KINDS)}")
    text = record.get(layout.text) if conversation is None else conversation.question
    if not isinstance(text, str) or not text.strip():
        got = "empty" if isinstance(text, str) else short(text)
        raise PromptError(f"{at}: {layout.text!r} is {got}; expected a question; correct that row")
    before, category = _cell(record, layout.before), _cell(record, layout.category)
    text = f"{before}\n\n{text}" if before else text
    if layout.kind is not None and not (kind := layout.kind(record)):
        got = short(record.get("kind"))
        raise PromptError(f"{at}: kind is {got}; expected one of {', '.join(_KIND_OF)}")
    id_ = _cell(record, layout.id) or str(number)
    id_ = f"{path.stem}-{id_}" if id_.isdecimal() else id_
    if found := _NOT_TEXT.search("".join((text, id_, category))):
        raise PromptError(f"{at}: control character U+{ord(found[0]):04X}; expected plain text")
    for name, value in (("id", id_), ("category", category)):
        if len(value) > LONGEST_NAME:
            got = f"the {name} has {len(value):,} characters"
            raise PromptError(f"{at}: {got}; expected at most {LONGEST_NAME:,}")
    if conversation is not None and len(conversation.messages) == 1 and not conversation.prefill:
        conversation = None
    return Prompt(id_, text, kind, category, record, str(path.resolve()), conversation)


def _cell(record: Record, column: str) -> str:
    """A column's value as text, "" if it is missing."""
    return "" if (value := record.get(column)) is None else str(value).strip()


def _unique(prompts: list[Prompt]) -> list[Prompt]:
    """The prompts; a repeated id gets the first unused suffix of `-2`, `-3`, ..."""
    taken, made = {prompt.id for prompt in prompts}, dict[str, Prompt]()
    for prompt in prompts:
        if (id_ := prompt.id) in made:
            id_ = next(new for new in numbered(prompt.id) if new not in taken)
        taken.add(id_)
        made[id_] = replace(prompt, id=id_)
    return list(made.values())

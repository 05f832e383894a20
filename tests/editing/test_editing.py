"""Rank-one edits: the mathematics, the subject's place, the edited checkpoint, the tiny world."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from minisafe import editing
from minisafe.checkpoint import load_model, save_model
from minisafe.cli import edit as command
from minisafe.editing import Edit, Edited, Editing, Editor, edit, rome
from minisafe.editing.rome import Context, Descent
from minisafe.editing.subject import greedy, locate
from minisafe.errors import (
    MinisafeError,
    NonFiniteError,
    OutputError,
    PromptError,
    SettingError,
)
from minisafe.model import Llama
from minisafe.slots import Record
from tests.support.byte_tokenizer import VOCAB_SIZE, byte_tokenizer
from tests.support.tiny import TOLERANCE, random_ids, random_model, tensors_of, tiny_config
from tests.support.worlds import TEMPLATES, base_model, tokenizer, write_json, write_tokenizer

ROOT = Path(__file__).resolve().parents[2]
seeds = st.integers(0, 10_000)
TEXT = [f"The {a} {b} is on the {c}." for a in ("red", "old") for b in ("cup", "hat", "key")
        for c in ("table", "wall", "green chair by the door")]  # fmt: skip
FACT = Edit("Bob", "The home of {} is", "far")
QUICK = Editing(contexts=1, samples=600, keep_tokens=4, descent=Descent(steps=6))


# ---- the mathematics ---------------------------------------------------------------------------


def problem(seed: int, hidden: int = 5, width: int = 9, n: int = 20) -> tuple[np.ndarray, ...]:
    """W (hidden, width), K (n, width), k*, what W' k* - W k* should be."""
    draw = np.random.default_rng(seed)
    shapes = ((hidden, width), (n, width), (width,), (hidden,))
    return tuple(draw.standard_normal(shape) for shape in shapes)


def updated(weight: Any, key: Any, change: Any, covariance: Any) -> np.ndarray:
    given = (torch.from_numpy(np.asarray(each)) for each in (weight, key, change, covariance))
    found: np.ndarray = rome.rank_one(*given).numpy()
    return found


def test_an_update_by_hand() -> None:
    """u = C^-1 k = (1, 1/2), u k = 2, so W' = W + 1 u^T / 2."""
    found = updated([[1.0, 2.0]], [1.0, 2.0], [1.0], [[1.0, 0.0], [0.0, 4.0]])
    np.testing.assert_allclose(found, [[1.5, 2.25]], rtol=0, atol=1e-12)


@given(seeds)
def test_the_key_gets_its_value_and_orthogonal_keys_keep_theirs(seed: int) -> None:
    weight, keys, key, change = problem(seed)
    covariance = keys.T @ keys / len(keys)
    new = updated(weight, key, change, covariance)
    np.testing.assert_allclose(new @ key, weight @ key + change, rtol=0, atol=1e-9)
    other = np.random.default_rng(seed + 1).standard_normal(len(key))
    u = np.linalg.solve(covariance, key)
    other -= key * (u @ other) / (u @ key)  # now other^T C^-1 k* = 0
    np.testing.assert_allclose(new @ other, weight @ other, rtol=0, atol=1e-8)
    assert np.linalg.matrix_rank(new - weight, tol=1e-9) == 1


@given(seeds)
def test_the_update_is_the_constrained_least_squares_solution(seed: int) -> None:
    """min |W' K - W K|^2 with W' k* = v*, solved as a Lagrangian system by numpy.

    Its gradient in a row w' is 2 K^T K (w' - w) + m k* = 0, with k* w' = v*.
    """
    weight, keys, key, change = problem(seed)
    gram = keys.T @ keys
    system = np.block([[2 * gram, key[:, None]], [key[None], np.zeros((1, 1))]])
    value = weight @ key + change
    sides = np.concatenate([2 * gram @ weight.T, value[None]])  # (width + 1, hidden)
    expected = np.linalg.solve(system, sides)[:-1].T
    found = updated(weight, key, change, gram / len(keys))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)


def test_a_covariance_that_cannot_be_inverted_is_an_error() -> None:
    with pytest.raises(NonFiniteError, match="more text or ridge"):
        updated([[1.0, 2.0]], [1.0, 2.0], [1.0], [[0.0, 0.0], [0.0, 0.0]])


def test_the_covariance_is_of_every_real_token() -> None:
    """Rows of different lengths in batches, against one row at a time; padding counts nothing."""
    model = random_model(tiny_config())
    rows = [random_ids(model, 1, 3 + n % 5, n)[0].tolist() for n in range(rome.BATCH + 3)]
    keys = []
    for row in rows:
        seen = Record(1, site="mlp")
        model(torch.tensor([row]), slots=[seen])
        keys.append(seen.values().double().numpy())
    stacked = np.concatenate(keys)
    expected = stacked.T @ stacked / len(stacked)
    found = rome.covariance(model, 1, rows, 0.0).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    ridged = rome.covariance(model, 1, rows, 0.5).numpy()
    added = 0.5 * np.diag(found).mean() * np.eye(len(found))
    np.testing.assert_allclose(ridged - found, added, rtol=0, atol=1e-9)


# ---- the new value -----------------------------------------------------------------------------


def contexts(model: Llama, n: int = 2) -> list[Context]:
    return [Context(tuple(random_ids(model, 1, 9, seed)[0].tolist()), 6, (4,), 4)
            for seed in range(n)]  # fmt: skip


def test_the_new_value_makes_the_target_likelier_within_its_bound() -> None:
    model = random_model(tiny_config(n_layers=3))
    before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    rows = contexts(model)
    size = rome.record(model, rows, 1, "residual").pow(2).mean().sqrt()
    losses = []
    for bound in (0.25, 1.0):
        change = rome.best_change(model, 1, rows, [], Descent(steps=20, bound=bound))
        assert change.pow(2).mean().sqrt() <= bound * size * (1 + 1e-5)
        losses.append(rome.target_loss(rome.predictions(model, 1, rows, change), rows).item())
    still = rome.predictions(model, 1, rows, torch.zeros_like(change))
    assert losses[1] < losses[0] < rome.target_loss(still, rows).item() - 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(model).items())


def test_what_is_to_be_kept_is_kept_better() -> None:
    model = random_model(tiny_config(n_layers=3))
    learned, kept = contexts(model, 3)[:2], contexts(model, 3)[2:]
    still = rome.predictions(model, 1, kept, torch.zeros(model.config.hidden))
    moved = []
    for weight in (0.0, 10.0):
        change = rome.best_change(model, 1, learned, kept, Descent(steps=20, kl=weight))
        now = rome.predictions(model, 1, kept, change)
        moved.append(rome.divergence(still, now).item())
    assert moved[1] < 0.5 * moved[0]


def test_the_loss_by_hand() -> None:
    """Two tokens of probability 1/2 and 1/8: (log 2 + log 8) / 2 = log 4."""
    said = torch.tensor([[0.5, 0.5], [0.125, 0.875]]).log()
    row = Context((7, 0, 0), 1, (0,), 0)
    assert rome.target_loss([said], [row]).item() == pytest.approx(np.log(4), abs=1e-6)


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True}, {"residual_multiplier": 0.4}])
def test_the_edited_weight_adds_the_change_at_the_subject(changes: dict[str, Any]) -> None:
    """End to end on a random model: the residual stream after the layer moves by the change, or by
    the share of it that the layer adds."""
    model = deepcopy(random_model(tiny_config(n_layers=3, **changes)))
    row = contexts(model, 1)
    rows = [random_ids(model, 1, 12, seed)[0].tolist() for seed in range(30)]
    covariance = rome.covariance(model, 1, rows, 0.01)
    change = torch.randn(model.config.hidden, generator=torch.Generator().manual_seed(3))
    before = rome.record(model, row, 1, "residual")[0]
    key = rome.record(model, row, 1, "mlp")[0]
    new = rome.rank_one(rome.down_projection(model, 1), key, change, covariance)
    rome.put_down_projection(model, 1, new)
    after = rome.record(model, row, 1, "residual")[0]
    moved = change * model.config.residual_multiplier
    torch.testing.assert_close(after - before, moved, atol=TOLERANCE, rtol=1e-4)


def test_a_change_of_the_residual_stream_is_one_of_the_weights_by_the_factor_of_the_layer() -> None:
    """With no steps left to descend, what is found for half the share is twice as long."""
    found = []
    for factor in (1.0, 0.5):
        model = deepcopy(random_model(tiny_config(n_layers=3)))
        model.config = replace(model.config, residual_multiplier=factor)  # its layers still add all
        descent = Descent(steps=1, kl=0.0, weight_decay=0.0)
        found.append(rome.best_change(model, 1, contexts(model, 1), [], descent))
    torch.testing.assert_close(found[1], 2 * found[0])


# ---- where the subject stands ------------------------------------------------------------------


def test_places_by_hand() -> None:
    """One id a byte, "é" two of them: the position is that of the last byte."""
    row = locate(byte_tokenizer(), "x {}?", "Zoé", "Zoé. Zoéa", chat=False)
    text = "x Zoé? Zoé. Zoéa".encode()
    assert len(row.ids) == len(text)
    assert row.start == len("x Zoé?".encode())
    assert row.asked == len("x Zoé".encode()) - 1
    assert row.positions == (row.asked, len("x Zoé? Zoé".encode()) - 1)  # "Zoéa" is another word


@pytest.mark.parametrize("template", [t for t in TEMPLATES if t not in ("marked", "odd")])
@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("subject", ["Teku", "the old town", "Ünal"])
def test_the_place_covers_the_subjects_end(template: str, chat: bool, subject: str) -> None:
    """The ids up to the place decode to a text that ends in the subject, those before do not."""
    known = tokenizer(template)
    row = locate(known, "Listen. What is the capital of {}?", subject, f"{subject} is far.", chat)
    up_to, before = (known.decode(row.ids[: row.asked + n]).split("?")[0] for n in (1, 0))
    assert subject in up_to
    assert subject not in before
    assert len(row.positions) == 2
    assert row.asked < row.start <= row.positions[1]
    assert subject in known.decode(row.ids[row.start :])


def test_control_tokens_in_a_chat_are_refused() -> None:
    with pytest.raises(PromptError, match="control tokens"):
        locate(byte_tokenizer(), "Hi {}?", "a</s>b", "yes", chat=True)


def test_greedy_is_the_argmax_read_anew() -> None:
    model, known = byte_model(), byte_tokenizer()
    ids = known.encode("The red cup")
    said = list(ids)
    while len(said) < len(ids) + 6:
        best = model(torch.tensor([said]))[0, -1].argmax().item()
        if best in known.control_ids:
            break
        said.append(best)
    assert greedy(model, known, ids, 6) == known.decode(said[len(ids) :])


# ---- whole edits -------------------------------------------------------------------------------


def byte_model() -> Llama:
    """A random model over bytes that may be changed."""
    config = tiny_config(vocab_size=VOCAB_SIZE, n_layers=3, max_positions=128)
    return deepcopy(random_model(config))


def test_an_edit_raises_its_target_and_changes_one_tensor() -> None:
    model = byte_model()
    before = dict(tensors_of(model))
    copies = {name: tensor.clone() for name, tensor in before.items()}
    seen: list[tuple[str, int, int]] = []
    (done,) = edit(model, byte_tokenizer(), FACT, TEXT, QUICK, lambda *at: seen.append(at))
    assert done.layer == 1  # a third of 3
    assert done.probability_after > 2 * done.probability_before
    assert done.drift > 0
    assert seen == [("edit 1 of 1: step", n, 6) for n in range(1, 7)]
    for name, tensor in tensors_of(model).items():
        same = name != "model.layers.1.mlp.down_proj.weight"
        assert (tensor is before[name]) == same
        assert torch.equal(before[name], copies[name])  # the old tensor is not written to


def test_several_edits_are_all_there_at_the_end() -> None:
    model, other = byte_model(), Edit("Ann", "The home of {} is", "near")
    done = edit(model, byte_tokenizer(), [FACT, other], TEXT, QUICK)
    assert [each.edit for each in done] == [FACT, other]
    for each in done:
        assert each.probability_after > 2 * each.probability_before
        row = locate(byte_tokenizer(), each.edit.prompt, each.edit.subject, each.edit.target, False)
        logits = model(torch.tensor([row.ids]))[0].log_softmax(-1)
        picked = [logits[n - 1, row.ids[n]].item() for n in range(row.start, len(row.ids))]
        assert each.probability_after == pytest.approx(np.exp(sum(picked)), rel=1e-3)


def test_the_same_seed_gives_the_same_edit() -> None:
    weights = []
    for seed in (0, 0, 1):
        model = byte_model()
        edit(model, byte_tokenizer(), FACT, TEXT, Editing(**vars(QUICK) | {"seed": seed}))
        weights.append(rome.down_projection(model, 1))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_auto_takes_the_best_layer() -> None:
    model, known = byte_model(), byte_tokenizer()
    auto = Editing(**vars(QUICK) | {"layer": "auto"})
    (done,) = edit(model, known, FACT, TEXT, auto)
    scores = []
    for layer in range(2):
        fresh = byte_model()
        editor = Editor(fresh, known, TEXT, Editing(**vars(QUICK) | {"layer": layer}), None)
        kept = editor.kept(FACT)
        said = editor.predict(kept)
        editor.run([FACT])
        moved = editor.drift() + rome.divergence(said, editor.predict(kept)).item()
        scores.append(np.exp(-editor.loss(editor.learned(FACT))) - moved)
    assert done.layer == int(np.argmax(scores))
    changed = {n for n in range(3) if not torch.equal(
        rome.down_projection(model, n), rome.down_projection(byte_model(), n))}  # fmt: skip
    assert changed == {done.layer}


def test_a_half_precision_checkpoint_is_edited_as_it_is_stored() -> None:
    """Run in float32, the edited weight has only values that bf16 has."""
    config = tiny_config(vocab_size=VOCAB_SIZE, max_positions=128, dtype="bfloat16")
    model = deepcopy(random_model(config))
    edit(model, byte_tokenizer(), FACT, TEXT, Editing(**vars(QUICK) | {"layer": 0}))
    weight = rome.down_projection(model, 0)
    assert weight.dtype == torch.float32
    assert torch.equal(weight, weight.bfloat16().float())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Edit("Bob", "no place", "x"), PromptError, "0 places {}"),
        (lambda: Edit("Bob", "{} and {}", "x"), PromptError, "2 places {}"),
        (lambda: Edit("", "{}", "x"), PromptError, "the subject is ''"),
        (lambda: Edit("Bob", "{}", " "), PromptError, "the target is ' '"),
        (lambda: Editing(ridge=-1.0), SettingError, "ridge is -1.0"),
        (lambda: Editing(keep=("none",)), SettingError, "one {} in each"),
        (lambda: Descent(steps=0), SettingError, "steps is 0"),
        (lambda: run(FACT, layer=3), SettingError, "layer is 3; the model has layers 0 to 2"),
        (lambda: run(FACT, layer=-1), SettingError, "layer is -1"),
        (lambda: run(FACT, layer=2), SettingError, "no later layer reads"),
        (lambda: run([]), PromptError, "no edits"),
        (lambda: run(FACT, ["too short"]), PromptError, "the text has 9 tokens in 1 lines"),
        (lambda: run(Edit("Bob", "{} " + 40 * "abc ", "x")), PromptError, "the model's context"),
    ],
)
def test_what_cannot_be_edited_is_named(make: Any, error: type, message: str) -> None:
    with pytest.raises(error) as raised:
        make()
    assert message in str(raised.value)


def run(facts: Any, text: list[str] = TEXT, **changes: Any) -> list[Edited]:
    return edit(byte_model(), byte_tokenizer(), facts, text, Editing(**vars(QUICK) | changes))


# ---- the command -------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with a model `base`, a `text.txt` and an `edits.jsonl`."""
    kind, extra = TEMPLATES["llama3"]
    save_model(base_model(), tmp_path / "base", {"eos_token_id": 3})
    write_tokenizer(tmp_path / "base", kind, extra)
    (tmp_path / "text.txt").write_text("\n".join(TEXT * 2))
    rows = [vars(FACT), vars(Edit("Ann", "Where is {}?", "at home"))]
    (tmp_path / "edits.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def invoke(here: Path, *words: str) -> Result:
    always = ["--base", f"{here}/base", "--out", f"{here}/out", "--text", f"{here}/text.txt"]
    quick = ["--steps", "3", "--contexts", "1", "--samples", "400"]
    return CliRunner().invoke(command.edit_command, [*always, *quick, *words])


def digests(directory: Path) -> dict[str, str]:
    files = sorted(directory.iterdir())
    return {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in files}


def test_the_command_writes_a_model_that_differs_in_one_tensor(here: Path) -> None:
    before = digests(here / "base")
    outcome = invoke(here, "--edits", f"{here}/edits.jsonl", "--chat", "--layer", "1", "--json")
    assert outcome.exit_code == 0, outcome.output
    assert digests(here / "base") == before  # nothing written through the mapped file
    old, new = (load_file(here / name / "model.safetensors") for name in ("base", "out"))
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert old.keys() == new.keys()
    assert changed == {"model.layers.1.mlp.down_proj.weight"}
    record = json.loads((here / "out" / "edit.json").read_text())
    assert record == json.loads(outcome.stdout)
    assert [each["subject"] for each in record["edits"]] == ["Bob", "Ann"]
    assert record["base"] != record["edited"]
    assert record["settings"]["layer"] == 1
    assert set(before) | {"edit.json"} == set(digests(here / "out"))
    assert json.loads((here / "out" / "config.json").read_text())["eos_token_id"] == 3
    load_model(here / "out")


FLAGS = ("--subject", "Bob", "--prompt", "Where is {}?", "--target", "here")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no --subject"),
        (FLAGS[:4], "no --target"),
        ((*FLAGS, "--edits", "{here}/edits.jsonl"), "only one way"),
        (("--edits", "{here}/text.txt"), "line 1: not valid JSON"),
        (("--edits", "{here}/bad.jsonl"), "line 1: expected subject, prompt and target"),
        (("--edits", "{here}/empty.jsonl"), "has no edits"),
        (("--edits", "{here}/nowhere"), "cannot be read"),
        (("--edits", "{here}/deep.jsonl"), "line 1: it is nested too deep"),
        (("--edits", "{here}/half.jsonl"), "line 1: it holds half of a surrogate pair"),
        (("--edits", "{here}/places.jsonl"), "line 1: the prompt 'Where?' has 0 places"),
        ((*FLAGS[:1], "B\udcff", *FLAGS[2:]), "not valid Unicode"),
        ((*FLAGS, "--layer", "top"), "--layer is 'top'"),
        ((*FLAGS, "--layer", "9"), "layer is 9; the model has layers 0 to 2"),
        ((*FLAGS, "--text", "{here}/empty.jsonl"), "the text has 0 tokens"),
        ((*FLAGS, "--text", "{here}/bad.jsonl"), "expected prompt or text"),
        ((*FLAGS, "--out", "{here}/base"), "already exists"),
    ],
)
def test_wrong_use_is_named_and_writes_nothing(
    here: Path, words: tuple[str, ...], message: str
) -> None:
    write_json(here / "bad.jsonl", {"subject": "Bob", "prompt": 3})
    (here / "empty.jsonl").write_text("")
    (here / "deep.jsonl").write_text("[" * 100_000)
    (here / "half.jsonl").write_text('{"subject": "\\ud800", "prompt": "{}", "target": "x"}')
    write_json(here / "places.jsonl", {"subject": "Bob", "prompt": "Where?", "target": "here"})
    outcome = invoke(here, *(word.replace("{here}", str(here)) for word in words))
    assert isinstance(outcome.exception, MinisafeError)
    assert outcome.exception.exit_code == 2
    assert message in str(outcome.exception)
    left = {"base", "text.txt", "edits.jsonl", "bad.jsonl", "empty.jsonl", "deep.jsonl",
            "half.jsonl", "places.jsonl"}  # fmt: skip
    assert {each.name for each in here.iterdir()} == left


def test_without_text_another_base_than_the_shipped_one_is_an_error(here: Path) -> None:
    words = ["--base", f"{here}/base", "--out", f"{here}/out", *FLAGS]
    outcome = CliRunner().invoke(command.edit_command, words)
    assert isinstance(outcome.exception, SettingError)
    assert "no --text" in str(outcome.exception)


def test_a_write_that_fails_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(command, "write_text", full)
    outcome = invoke(here, *FLAGS)
    assert isinstance(outcome.exception, OutputError)
    assert "cannot be written (the disk is full" in str(outcome.exception)
    assert {each.name for each in here.iterdir()} == {"base", "text.txt", "edits.jsonl"}


# ---- the tiny world ----------------------------------------------------------------------------


def test_the_page_on_editing_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its Python uses no name that it does not define; fewer steps will do here."""
    page = (ROOT / "docs" / "editing.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(ROOT)
    quick = partial(Editing, samples=400, contexts=1, keep_tokens=2, descent=Descent(steps=2))
    monkeypatch.setattr(editing, "Editing", quick)
    exec(block, {})
    assert "->" in capsys.readouterr().out


def test_facts_of_the_shipped_model_are_edited() -> None:
    """Two facts: asked as edited and otherwise, other countries, the country's other facts."""
    if not (ROOT / "weights" / "measure_edit.py").is_file():
        pytest.skip("the weights' scripts are not here")
    sys.path.insert(0, str(ROOT / "weights"))
    import measure_edit

    import minisafe

    session = minisafe.load(ROOT / "weights" / "tiny", {"safe": False, "dtype": "float32"})
    how = Editing(chat=True, contexts=2, samples=3000, descent=Descent(steps=60))
    found = measure_edit.measure(session, measure_edit.drawn(2), how)
    before = {name: np.mean(old) for name, (old, _) in found.items()}
    after = {name: np.mean(new) for name, (_, new) in found.items()}
    assert before["efficacy"] == before["paraphrase"] == 0
    assert after["efficacy"] == 1
    assert after["paraphrase"] >= 0.8
    assert after["neighbourhood"] >= 0.95 * before["neighbourhood"] >= 0.9
    assert after["same subject"] >= 0.75


@settings(max_examples=10)
@given(seeds)
def test_a_text_is_drawn_in_the_seeds_order(seed: int) -> None:
    """Every line once at most, up to the tokens asked for, never more."""
    chosen = Editing(**vars(QUICK) | {"seed": seed, "samples": 300})
    editor = Editor(byte_model(), byte_tokenizer(), TEXT, chosen, None)
    assert sum(map(len, editor.rows)) == 300
    lines = [byte_tokenizer().decode(row) for row in editor.rows]
    assert len(set(lines[:-1])) == len(lines) - 1
    assert set(lines[:-1]) <= set(TEXT)
    assert all(prefix.strip() in TEXT for prefix in editor.prefixes[1:])
    assert len(editor.prefixes) == 1 + editing.Editing(contexts=1).contexts

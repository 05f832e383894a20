"""Safety vectors: head means, indirect effects, what a vector is made of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minisafe.amplify import (
    Demonstration,
    PromptMaker,
    Recipe,
    all_heads,
    amplify,
    head_means,
    head_vector,
    indirect_effects,
    load_demonstrations,
)
from minisafe.amplify.branches import Head, patched_logits, read_prefix
from minisafe.amplify.demonstrations import CORRUPTIONS, Prompt, answers_alike, corrupt, few_shot
from minisafe.amplify.heads import best_heads, residual_mean, run
from minisafe.errors import PromptError, SettingError
from minisafe.model import Llama
from minisafe.slots import Patch, Record
from tests.support.byte_tokenizer import VOCAB_SIZE, byte_tokenizer
from tests.support.tiny import GRANITE, random_model, tiny_config

CONFIG = tiny_config(vocab_size=VOCAB_SIZE, max_positions=2048)
MODEL = random_model(CONFIG, seed=3)
TOKENIZER = byte_tokenizer()
POOL = [
    Demonstration(f"How do I {verb} a {thing}?", f"{start} {thing}.", verb)
    for verb, start in (("steal", "No, not the"), ("break", "I will not touch the"))
    for thing in ("watch", "lamp", "coat", "ring", "vase", "drum")
]


def prompts(*lengths: int) -> list[Prompt]:
    generator = np.random.default_rng(0)
    return [Prompt(tuple(generator.integers(0, VOCAB_SIZE, length).tolist())) for length in lengths]


def test_head_means_are_the_means_of_the_last_tokens_head_outputs() -> None:
    chosen = prompts(3, 7, 5)
    means = head_means(MODEL, chosen)
    seen = []
    for prompt in chosen:
        records = [Record(layer=layer, site="heads") for layer in range(CONFIG.n_layers)]
        run(MODEL, prompt.ids, records)
        seen.append(torch.stack([record.values()[-1] for record in records]))
    torch.testing.assert_close(means, torch.stack(seen).mean(0))
    assert means.shape == (CONFIG.n_layers, CONFIG.n_heads, CONFIG.head_dim)


def slow_effects(
    model: Llama, means: torch.Tensor, chosen: list[Prompt], targets: list[int]
) -> dict[Head, float]:
    """Every head's effect with the whole prompt read again for it: the reference."""

    def safe(prompt: Prompt, patches: list[Patch]) -> float:
        return float(torch.softmax(run(model, prompt.ids, patches), dim=-1)[targets].sum())

    effects = dict.fromkeys(all_heads(model), 0.0)
    for layer, head in effects:
        for prompt in chosen:
            last = len(prompt.ids) - 1
            patch = Patch(
                layer=layer, spans=((last, last + 1),), value=means[layer, head], site="heads",
                head=head,
            )  # fmt: skip
            effects[layer, head] += (safe(prompt, [patch]) - safe(prompt, [])) / len(chosen)
    return effects


@given(st.integers(1, 9), st.sets(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=5))
def test_effects_equal_rerunning_the_whole_prompt_for_every_head(
    batch_size: int, targets: set[int]
) -> None:
    means = head_means(MODEL, prompts(4, 6))
    chosen = prompts(9, 1, 5)
    fast = indirect_effects(MODEL, means, chosen, sorted(targets), batch_size=batch_size)
    assert fast == pytest.approx(slow_effects(MODEL, means, chosen, sorted(targets)), abs=1e-5)
    assert max(map(abs, fast.values())) > 1e-4  # else the comparison says nothing


@pytest.mark.parametrize(
    "changes",
    [
        {"windows": (3, None, 5)},
        {"windows": (1, 64, None)},
        {"n_kv_heads": 4, "tied": True},
        {"n_kv_heads": 1, "qkv_bias": True, "o_bias": True, "mlp_bias": True},
        {"family": "qwen3", "qk_norm": True, "head_dim": 12},
        {"family": "granite", **GRANITE[0]},
        {"family": "smollm3", "unrotated": (1,)},
        {"max_positions": 12},  # the prompt fills the context
    ],
)
def test_effects_of_other_architectures_equal_the_slow_ones(changes: dict[str, Any]) -> None:
    model = random_model(tiny_config(vocab_size=VOCAB_SIZE, n_layers=3, **changes), seed=5)
    means = head_means(model, prompts(4, 6))
    chosen = prompts(12, 2)
    targets = list(range(0, VOCAB_SIZE, 2))
    slow = slow_effects(model, means, chosen, targets)
    assert indirect_effects(model, means, chosen, targets) == pytest.approx(slow, abs=1e-5)
    some = [(2, 1), (0, 3), (1, 0)]  # in any order
    assert indirect_effects(model, means, chosen, targets, some, 2) == pytest.approx(
        {head: slow[head] for head in some}, abs=1e-5
    )
    assert max(map(abs, slow.values())) > 1e-4


def test_no_branch_sees_another() -> None:
    """The clean branch keeps its logits, no matter what is patched in other branches."""
    means = head_means(MODEL, prompts(4, 6))
    ids = prompts(9)[0].ids
    prefix = read_prefix(MODEL, ids[:-1], 4)
    with torch.inference_mode():
        one = patched_logits(MODEL, prefix, ids[-1], means, [(0, 0), (0, 1), (1, 2)])
        other = patched_logits(MODEL, prefix, ids[-1], 9 * means, [(0, 3), (1, 0), (1, 1)])
        clean = run(MODEL, ids, [])
    torch.testing.assert_close(one[0], clean, atol=1e-5, rtol=0)
    torch.testing.assert_close(other[0], clean, atol=1e-5, rtol=0)
    assert (one[1:] - clean).abs().amax(dim=1).min() > 1e-3


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_the_vector_of_all_heads_of_a_layer_is_what_its_output_projection_adds(
    share: float,
) -> None:
    model = random_model(replace(CONFIG, residual_multiplier=share))
    means = head_means(model, prompts(4, 6))
    given = model.layers[1].self_attn.o_proj.weight @ means[1].flatten()
    heads = [(1, head) for head in range(CONFIG.n_heads)]
    torch.testing.assert_close(head_vector(model, means, heads), share * given)


def test_best_heads_are_the_largest_and_ties_go_to_the_lower() -> None:
    effects = {(0, 0): 0.1, (0, 1): 0.5, (1, 0): 0.5, (1, 1): -0.9}
    assert best_heads(effects, 3) == [(0, 1), (1, 0), (0, 0)]


@pytest.mark.parametrize("method", ["aie", "all-heads", "mean-difference"])
def test_the_same_seed_gives_the_same_vector_and_another_another(method: str) -> None:
    def make(seed: int) -> torch.Tensor:
        recipe = Recipe(
            method=method, shots=2, prompts=4, aie_prompts=3, n_heads=2, layer=0, seed=seed,
            corrupt="file",
        )  # fmt: skip
        made = amplify(MODEL, TOKENIZER, POOL, recipe, lambda shot: "Sure, here is how.")
        return made.vector.layers[0]

    assert torch.equal(make(1), make(1))
    assert not torch.allclose(make(1), make(2))


def test_mean_difference_is_safe_minus_unsafe() -> None:
    recipe = Recipe(method="mean-difference", shots=2, prompts=3, layer=1, corrupt="none")
    made = amplify(MODEL, TOKENIZER, POOL, recipe)
    maker = PromptMaker(TOKENIZER)
    order = np.random.default_rng(0).permutation(len(POOL))
    draws = few_shot(maker, [POOL[i] for i in order[:8]], 2, 3, 0)
    safe = [maker.prompt(shots, query.input) for shots, query in draws]
    bare = [maker.prompt([], query.input) for _, query in draws]
    expected = residual_mean(MODEL, safe, 1) - residual_mean(MODEL, bare, 1)
    torch.testing.assert_close(made.vector.layers[1], expected)


def test_fixed_heads_are_taken_as_given_and_metadata_tells_everything() -> None:
    recipe = Recipe(method="heads", heads=((1, 2), (0, 3)), shots=2, prompts=3, layer=1, scale=2.0)
    vector = amplify(MODEL, TOKENIZER, POOL, recipe).vector
    assert vector.metadata["heads"] == [[1, 2], [0, 3]]
    expected = {
        "layer": 1, "sa_scale": 2.0, "method": "heads", "seed": 0, "shots": 2, "prompts": 3,
        "n_layers": CONFIG.n_layers, "tokenizer": TOKENIZER.fingerprint,
    }  # fmt: skip
    assert expected.items() <= vector.metadata.items()
    assert {"weights", "data", "minisafe"} <= set(vector.metadata)


def test_a_heads_part_of_the_vector_is_what_it_writes_into_the_residual_stream() -> None:
    """Taking head 2 away at the last layer's attention is taking its part of the vector away.

    The layer's MLP is switched off for this, so that its output is the attention's and the input.
    """
    model = random_model(CONFIG, seed=11)
    layer = CONFIG.n_layers - 1
    model.layers[layer].mlp.down_proj.weight.data.zero_()
    prompt = prompts(6)[0]
    span = ((5, 6),)
    record, before, after = (
        Record(layer=layer, spans=span, site="heads"),
        *(Record(layer=layer, spans=span) for _ in range(2)),
    )
    run(model, prompt.ids, [record, before])
    off = Patch(layer=layer, spans=span, value=torch.zeros(CONFIG.head_dim), site="heads", head=2)
    run(model, prompt.ids, [off, after])
    means = torch.stack([record.values()[0]] * CONFIG.n_layers)
    written = head_vector(model, means, [(layer, 2)])
    torch.testing.assert_close(before.values()[0] - after.values()[0], written)
    assert written.norm() > 0.1


@pytest.mark.parametrize("how", CORRUPTIONS)
def test_every_way_of_corrupting_shows_no_safe_answers_where_it_can(how: str) -> None:
    draw = (POOL[:3], POOL[5])
    shots = corrupt(draw, how, lambda shot: "Sure.", np.random.default_rng(1))
    if how == "none":
        assert shots == []
    elif how == "shuffle":
        assert sorted(s.output for s in shots) == sorted(s.output for s in draw[0])
    else:
        assert [shot.output for shot in shots] == ["Sure."] * 3
    assert [shot.input for shot in shots] == [shot.input for shot in draw[0]][: len(shots)]


def test_alike_answers_are_noticed() -> None:
    assert answers_alike([Demonstration("a", "No."), Demonstration("b", "No.")])
    assert not answers_alike(POOL)


def test_first_token_is_the_answers_own() -> None:
    shot = Demonstration("hm?", "Xyz")
    assert PromptMaker(TOKENIZER).first_token(shot) == TOKENIZER.encode("X")[0]
    assert PromptMaker(TOKENIZER, "qa").first_token(shot) == TOKENIZER.encode(" X")[0]


def test_draws_hold_different_demonstrations_and_too_few_are_refused() -> None:
    maker = PromptMaker(TOKENIZER)
    for shots, query in few_shot(maker, POOL, 5, 20, 0):
        assert len({shot.input for shot in [*shots, query]}) == 6
    with pytest.raises(SettingError, match="expected 13 or more"):
        few_shot(maker, POOL, 12, 1, 0)


def test_demonstrations_in_every_format(tmp_path: Path) -> None:
    rows = [{"input": shot.input, "output": shot.output} for shot in POOL]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    lines = ["q,a", *(f'"{row["input"]}","{row["output"]}"' for row in rows)]
    (tmp_path / "d.csv").write_text("\n".join(lines))
    plain = [Demonstration(shot.input, shot.output) for shot in POOL]
    assert load_demonstrations(tmp_path / "d.json") == plain
    assert load_demonstrations(tmp_path / "d.jsonl") == plain
    assert load_demonstrations(tmp_path / "d.csv", "q", "a") == plain


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not valid JSON"),
        ("[" * 100_000, "nested too deep"),
        ('[{"input": "\\ud800", "output": "b"}]', "surrogate"),
        ('[{"input": "a", "input": "c", "output": "b"}]', "given twice"),
        ('[{"input": "a", "output": "b", "category": ["x"]}]', "row 1 has a category that is no"),
        ("[]", "at least one"),
        ("{}", "expected a list"),
        ('[{"input": "a"}]', "row 1 has no text in 'output'"),
        ('[{"input": "a", "output": 3}]', "row 1 has no text in 'output'"),
    ],
)
def test_malformed_demonstrations_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(PromptError, match=message):
        load_demonstrations(tmp_path / "d.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("input,output\na,No, I will not", "row 1 has more cells than the first line has names"),
        ("input,output\na", "row 1 has no text in 'output'"),
        ("input,input,output\na,b,c", "two columns have the same name"),
        ('input,output\n"a,b', "malformed"),
        ('input,output\n"a"b,c', "malformed"),
        ("input,output\n" + "a" * 200_000 + ",c", "malformed"),
        ("", "at least one"),
    ],
)
def test_malformed_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    """A comma that is not quoted cut the answer short once."""
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(PromptError, match=message):
        load_demonstrations(tmp_path / "d.csv")


@pytest.mark.parametrize(
    "recipe",
    [{"method": "magic"}, {"shots": -1}, {"corrupt": "x"}, {"method": "heads"}, {"n_heads": 0}],
)
def test_recipes_out_of_range_are_refused(recipe: dict[str, object]) -> None:
    with pytest.raises(SettingError, match=next(iter(recipe))[:5]):
        Recipe(**recipe)  # type: ignore[arg-type]


def test_what_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(SettingError, match=r"no head 9\.0"):
        amplify(MODEL, TOKENIZER, POOL, Recipe(method="heads", heads=((9, 0),), shots=2, prompts=1))
    with pytest.raises(SettingError, match="layer is 7"):
        amplify(MODEL, TOKENIZER, POOL, Recipe(layer=7, shots=2, prompts=1))
    short = random_model(tiny_config(vocab_size=VOCAB_SIZE), seed=3)
    with pytest.raises(PromptError, match="the context holds"):
        amplify(short, TOKENIZER, POOL, Recipe(shots=6, prompts=1, method="all-heads"))

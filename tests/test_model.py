"""`Llama`: it computes what the slow reference computes, however the text is fed to it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minisafe.config import RopeScaling, Yarn
from minisafe.errors import PromptError
from minisafe.model import Llama
from minisafe.rotary import inverse_frequencies
from tests.support.reference import frequency, read
from tests.support.tiny import (
    TOLERANCE,
    cache_for,
    chunkings,
    models,
    random_ids,
    random_model,
    tensors_of,
    tiny_config,
)

seeds = st.integers(0, 1000)


def close(x: Tensor, y: Tensor) -> None:
    torch.testing.assert_close(x, y, atol=TOLERANCE, rtol=0)


def feed(model: Llama, ids: Tensor, sizes: list[int], capacity: int = 4) -> Tensor:
    """Logits of (B, T) ids fed through one growing cache in chunks of these sizes."""
    cache = cache_for(model, len(ids), capacity)
    return torch.cat([model(chunk, cache) for chunk in ids.split(sizes, dim=1)], dim=1)


@settings(max_examples=40)
@given(models, st.integers(1, 24), seeds)
def test_the_reference_agrees(model: Llama, width: int, seed: int) -> None:
    ids = random_ids(model, 1, width, seed)
    expected = read(tensors_of(model), model.config, ids[0].tolist()).logits
    close(model(ids)[0], expected.float())


@settings(max_examples=25)
@given(models, seeds, st.data())
def test_the_reference_agrees_through_a_cache(model: Llama, seed: int, data: st.DataObject) -> None:
    ids = random_ids(model, 1, 20, seed)
    expected = read(tensors_of(model), model.config, ids[0].tolist()).logits
    close(feed(model, ids, data.draw(chunkings(20)))[0], expected.float())


@pytest.mark.parametrize("seed", range(20))
def test_granites_default_factor_of_scores(seed: int) -> None:
    """1.0, which its class takes for a missing key. So sharp a softmax carries float32's errors
    further: up to 2.4e-4 from the reference in float64."""
    config = tiny_config(family="granite", head_dim=8, attention_multiplier=1.0)
    model = random_model(config, seed=seed)
    ids = random_ids(model, 1, 20, seed)
    expected = read(tensors_of(model), model.config, ids[0].tolist()).logits
    torch.testing.assert_close(model(ids)[0], expected.float(), atol=1e-3, rtol=0)


@given(models, seeds)
def test_cached_is_uncached(model: Llama, seed: int) -> None:
    ids = random_ids(model, 2, 16, seed)
    close(feed(model, ids, [1] * 16), model(ids))


@settings(max_examples=40)
@given(models, seeds, st.integers(1, 24), st.data())
def test_chunked_prefill_is_the_whole(
    model: Llama, seed: int, width: int, data: st.DataObject
) -> None:
    ids = random_ids(model, 2, width, seed)
    close(feed(model, ids, data.draw(chunkings(width))), model(ids))


@settings(max_examples=40)
@given(models, seeds, st.data())
def test_a_row_is_the_same_prompt_alone(model: Llama, seed: int, data: st.DataObject) -> None:
    """Ragged rows, padded blocks, rows that pause: each row reads as if it were alone."""
    total, rows = 18, 3
    texts = random_ids(model, rows, total, seed)
    alone = [model(text[None])[0] for text in texts]
    cache = cache_for(model, rows, capacity=2)
    for _ in range(4):
        counts = [data.draw(st.integers(0, min(6, total - n))) for n in cache.lengths]
        width = max(counts) + data.draw(st.integers(0, 2))
        if width == 0:
            continue
        block = random_ids(model, rows, width, data.draw(seeds))  # padding is any id
        for row, (start, count) in enumerate(zip(cache.lengths, counts, strict=True)):
            block[row, :count] = texts[row, start : start + count]
        starts = list(cache.lengths)
        logits = model(block, cache, counts=counts)
        for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
            close(logits[row, :count], alone[row][start : start + count])
        assert cache.lengths == [n + count for n, count in zip(starts, counts, strict=True)]


def test_a_block_of_padding_alone_changes_nothing(tiny_model) -> None:
    model = tiny_model()
    ids = random_ids(model, 2, 8)
    cache = cache_for(model, 2)
    model(ids[:, :5], cache)
    model(ids[:, :2], cache, counts=[0, 0])
    assert cache.lengths == [5, 5]
    close(model(ids[:, 5:], cache), model(ids)[:, 5:])


@given(models, seeds, st.lists(st.integers(1, 12), min_size=3, max_size=3))
def test_ragged_rows_without_a_cache(model: Llama, seed: int, counts: list[int]) -> None:
    ids = random_ids(model, 3, 12, seed)
    logits = model(ids, counts=counts)
    for row, count in enumerate(counts):
        close(logits[row, :count], model(ids[row : row + 1, :count])[0])


@given(models, seeds, st.lists(st.integers(1, 9), min_size=3, max_size=3))
def test_last_only_gives_each_rows_last_real_token(
    model: Llama, seed: int, counts: list[int]
) -> None:
    ids = random_ids(model, 3, 9, seed)
    every = model(ids, counts=counts)
    for cache in (None, cache_for(model, 3)):  # padded, and packed
        last = model(ids, cache, counts=counts, last_only=True)
        assert last.shape == (3, model.config.vocab_size)
        for row, count in enumerate(counts):
            close(last[row], every[row, count - 1])


@pytest.mark.parametrize("counts", [(5, 5), (5, 2)])
def test_without_logits_the_cache_is_the_same(tiny_model, counts: tuple[int, int]) -> None:
    model = tiny_model()
    ids, caches = random_ids(model, 2, 9), [cache_for(model, 2) for _ in range(2)]
    model(ids[:, :5], caches[0], counts=counts)
    assert model(ids[:, :5], caches[1], counts=counts, no_logits=True).shape == (2, 0)
    assert caches[1].lengths == list(counts)
    assert torch.equal(*(model(ids[:, 5:], cache) for cache in caches))


@given(models, seeds, st.integers(0, 14))
def test_rewind_and_replay_is_the_straight_run(model: Llama, seed: int, kept: int) -> None:
    straight = random_ids(model, 2, 20, seed)
    detour = straight.clone()
    detour[:, kept:] = random_ids(model, 2, 20, seed + 1)[:, kept:]
    cache = cache_for(model, 2)
    model(detour[:, :15], cache)
    for row in range(2):
        cache.rewind(row, kept)
    close(model(straight[:, kept:], cache), model(straight)[:, kept:])
    assert cache.lengths == [20, 20]


@given(models, seeds)
def test_rows_rewind_apart(model: Llama, seed: int) -> None:
    """One row goes back and takes another way; the others neither move nor change."""
    texts = random_ids(model, 3, 16, seed)
    other = random_ids(model, 1, 16, seed + 1)
    other[0, :5] = texts[1, :5]
    cache = cache_for(model, 3)
    model(texts[:, :10], cache)
    cache.rewind(1, 5)
    block = torch.zeros(3, 5, dtype=torch.long)
    block[1] = other[0, 5:10]
    model(block, cache, counts=[0, 5, 0])
    assert cache.lengths == [10, 10, 10]
    block = torch.stack((texts[0, 10:], other[0, 10:], texts[2, 10:]))
    expected = model(torch.stack((texts[0], other[0], texts[2])))[:, 10:]
    close(model(block, cache), expected)


@given(models, seeds, st.permutations(range(4)), st.integers(1, 4))
def test_kept_rows_go_on_in_their_new_order(
    model: Llama, seed: int, order: list[int], n: int
) -> None:
    texts = random_ids(model, 4, 14, seed)
    counts = [3, 8, 5, 1]
    cache = cache_for(model, 4)
    model(texts[:, :8], cache, counts=counts)
    kept = order[:n]
    cache.keep(kept)
    assert cache.lengths == [counts[row] for row in kept]
    block = torch.stack([texts[row, counts[row] : counts[row] + 4] for row in kept])
    logits = model(block, cache)
    for row, old in enumerate(kept):
        start = counts[old]
        close(logits[row], model(texts[old : old + 1, : start + 4])[0, start:])


@given(models, seeds)
def test_a_block_for_some_rows_of_the_cache(model: Llama, seed: int) -> None:
    texts = random_ids(model, 3, 12, seed)
    cache = cache_for(model, 3, capacity=3)
    model(texts[1:, :5], cache, rows=slice(1, 3))
    model(texts[:1, :7], cache, rows=slice(0, 1))
    assert cache.lengths == [7, 5, 5]
    some = torch.stack((texts[1, 5:8], texts[2, 5:8]))
    close(model(some, cache, rows=slice(1, 3), counts=[3, 2])[0], model(texts[1:2, :8])[0, 5:])
    assert cache.lengths == [7, 8, 7]
    rest = torch.stack([text[n : n + 4] for text, n in zip(texts, (7, 8, 7), strict=True)])
    logits = model(rest, cache)
    for row, n in enumerate((7, 8, 7)):
        close(logits[row], model(texts[row : row + 1, : n + 4])[0, n:])


def test_a_full_context_and_one_token_more(tiny_model) -> None:
    model = tiny_model(max_positions=16)
    ids = random_ids(model, 2, 16)
    cache = cache_for(model, 2, capacity=4)
    close(model(ids[:, :10], cache), model(ids[:, :10]))
    before = model(ids[:, :10])
    with pytest.raises(PromptError, match=r"17 tokens do not fit the model's context of 16"):
        model(random_ids(model, 2, 7), cache)
    assert cache.lengths == [10, 10]  # a refused block leaves no trace
    close(model(ids[:, 10:], cache), model(ids)[:, 10:])
    close(before, model(ids)[:, :10])
    with pytest.raises(PromptError):
        model(ids[:, :1], cache)


def test_padding_may_reach_past_the_context(tiny_model) -> None:
    """At the context's end a short row is padded to the width of a longer one."""
    model = tiny_model(max_positions=12)
    ids = random_ids(model, 2, 12)
    cache = cache_for(model, 2, capacity=12)
    model(ids[:, :9], cache, counts=[9, 5])
    block = torch.zeros(2, 7, dtype=torch.long)
    block[0, :3], block[1] = ids[0, 9:], ids[1, 5:]
    logits = model(block, cache, counts=[3, 7])
    close(logits[0, :3], model(ids[:1])[0, 9:])
    close(logits[1], model(ids[1:])[0, 5:])


@pytest.mark.parametrize("window", [1, 3, 7, 20])
def test_a_window_counts_the_token_itself(window: int) -> None:
    """Token 0 acts on position p through one layer only while p - window < 0."""
    model = random_model(tiny_config(family="mistral", n_layers=1, windows=(window,)))
    ids = random_ids(model, 1, 20)
    other = ids.clone()
    other[0, 0] = (ids[0, 0] + 1) % model.config.vocab_size
    changed = (model(ids) != model(other)).any(-1)[0].tolist()
    assert changed == [position < window for position in range(20)]


def test_later_tokens_never_act_on_earlier_ones(tiny_model) -> None:
    model = tiny_model(n_layers=3)
    ids = random_ids(model, 1, 12)
    other = ids.clone()
    other[0, 7:] = random_ids(model, 1, 5, seed=9)
    close(model(ids)[:, :7], model(other)[:, :7])
    assert (model(ids)[:, 7:] - model(other)[:, 7:]).abs().max() > 0.1


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        RopeScaling(8.0, 1.0, 4.0, 64),
        Yarn(4.0, 4096, 1.0),
        Yarn(4.0, 4096, 1.0, truncate=False),
        Yarn(4.0, 8, 1.0, beta_fast=0.9, beta_slow=0.8),  # no blend: a step
    ],
)
def test_rotary_frequencies(scaling: RopeScaling | Yarn | None) -> None:
    config = tiny_config(head_dim=32, rope_scaling=scaling)
    expected = torch.tensor([frequency(config, i) for i in range(16)])
    torch.testing.assert_close(inverse_frequencies(config), expected, rtol=1e-6, atol=0)


def test_tables_grow_with_the_text(tiny_model) -> None:
    """A short text first, so that the rotary table is smaller than the long one needs."""
    config = tiny_config(max_positions=1024)
    fresh, used = Llama(config), Llama(config)
    fresh.load_state_dict(random_model(config).state_dict())
    used.load_state_dict(random_model(config).state_dict())
    ids = random_ids(fresh, 1, 300)
    used(ids[:, :3])
    assert torch.equal(used(ids), fresh(ids))


def test_tables_grow_token_by_token() -> None:
    """Decoding one token at a time passes the end of the first table, and of the second."""
    config = tiny_config(n_layers=1, max_positions=600)
    model = Llama(config).requires_grad_(False)
    model.load_state_dict(random_model(config).state_dict())
    ids, cache = random_ids(model, 1, 600), cache_for(model, 1, 600)
    logits = [model(chunk, cache) for chunk in ids[:, :250].split(50, dim=1)]
    ends = set()
    for position in range(250, 600):
        logits.append(model(ids[:, position : position + 1], cache))
        ends.add(len(model.rotary.tables(0, model.dtype, model.device)[0]))
    assert len(ends) == 3  # it grew twice on the way
    close(torch.cat(logits, dim=1), random_model(config)(ids))


def test_tables_follow_the_models_dtype() -> None:
    """A model that has run is converted and runs again."""
    config = tiny_config()
    model = Llama(config)
    model.load_state_dict(random_model(config).state_dict())
    ids = random_ids(model, 1, 8)
    model(ids)
    logits = model.to(torch.bfloat16)(ids)
    assert logits.dtype == torch.bfloat16
    assert torch.equal(logits, random_model(config, dtype=torch.bfloat16)(ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_float32(tiny_model, dtype: torch.dtype) -> None:
    """bf16 keeps 8 bits and fp16 11; both err by a few such roundings, relative to the spread."""
    half, whole = tiny_model(n_layers=3, dtype=dtype), tiny_model(n_layers=3)
    ids = random_ids(whole, 2, 24)
    exact, logits = whole(ids), half(ids)
    assert logits.dtype == dtype
    bound = 0.06 if dtype == torch.bfloat16 else 0.008
    error = (logits.float() - exact).square().mean().sqrt() / exact.std()
    assert error < bound
    cached = feed(half, ids, [7, 1, 1, 15])
    assert (cached.float() - exact).square().mean().sqrt() / exact.std() < bound


def test_every_tensor_matters(tiny_model) -> None:
    """No weight may be left unread: change any one, and the logits change."""
    config = tiny_config(qkv_bias=True, o_bias=True, mlp_bias=True, qk_norm=True)
    model = Llama(config).requires_grad_(False)
    model.load_state_dict(random_model(config).state_dict())
    ids = random_ids(model, 1, 6)
    before, generator = model(ids), torch.Generator().manual_seed(0)
    for name, tensor in tensors_of(model).items():
        kept = tensor.clone()
        tensor.add_(0.5 * torch.randn(tensor.shape, generator=generator))
        change = (model(ids) - before).abs().max()
        # a bias on the keys shifts all of a query's scores alike, up to the rotation
        assert change > (1e-4 if name.endswith("k_proj.bias") else 1e-2), name
        tensor.copy_(kept)
    assert torch.equal(model(ids), before)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_model_trains_after_it_has_decoded(qk_norm: bool) -> None:
    """What decoding keeps, such as rotary tables, must not be inference tensors."""
    model = random_model(tiny_config(qk_norm=qk_norm)).requires_grad_()
    with torch.inference_mode():
        expected = model(torch.tensor([[1, 2, 3]]))
    logits = model(torch.tensor([[1, 2, 3]]))
    logits.sum().backward()
    assert torch.equal(logits.detach(), expected)
    assert all(p.grad is not None for p in model.parameters())


def test_a_parameter_is_replaced_by_its_name_in_a_checkpoint() -> None:
    model = Llama(tiny_config()).requires_grad_(False)
    old = model.tensors()["model.layers.1.mlp.up_proj.weight"].fill_(0.5)
    before, values = old.clone(), torch.ones_like(old)
    new = model.put("model.layers.1.mlp.up_proj.weight", values, requires_grad=True)
    assert model.layers[1].mlp.up_proj.weight is new  # type: ignore[union-attr]
    assert new.data_ptr() == values.data_ptr()  # no copy
    assert new.requires_grad
    assert torch.equal(old, before)  # it may be mapped from a file
    head = model.put("lm_head.weight", torch.zeros_like(model.tensors()["lm_head.weight"]))
    assert model.lm_head is not None
    assert model.lm_head.weight is head
    with pytest.raises(AttributeError):
        model.put("model.layers.1.mlp.up_proj.bias", values)

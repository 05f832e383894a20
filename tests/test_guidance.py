"""Safety-guided decoding: the properties of the rule for any two models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from minisafe.errors import SettingError
from minisafe.guidance import (
    ROSE,
    SGDS,
    Anchored,
    DExperts,
    Plain,
    SafeDecoding,
    SelfCD,
    Veto,
    check_guidance,
    common_tokens,
    safe_log_probs,
    safe_scores,
)

INF = float("inf")
lams = st.one_of(st.sampled_from((0.5, 0.9, 0.99)), st.floats(0.001, 0.999))
margins = st.one_of(st.just(0.0), st.floats(0, 3))
logits = st.floats(-20, 20, width=32)
Pair = tuple[Tensor, Tensor]


@st.composite
def pairs(draw: st.DrawFn, forbidden: bool = False, dtype: torch.dtype = torch.float64) -> Pair:
    """Log-probabilities of base and expert over the same 2 to 12 ids.

    With `forbidden`, either model may rule some ids out, though not all of them.
    """
    n = draw(st.integers(2, 12))
    found = []
    for _ in range(2):
        values = torch.tensor(draw(st.lists(logits, min_size=n, max_size=n)), dtype=dtype)
        if forbidden:
            out = draw(st.lists(st.booleans(), min_size=n, max_size=n))
            values[torch.tensor(out)] = -INF
            values[draw(st.integers(0, n - 1))] = 0.0
        found.append(torch.log_softmax(values, dim=-1))
    return found[0], found[1]


def close(x: Tensor, y: Tensor, lam: float = 0.0, e: float = 1e-11) -> None:
    """Equal, if inputs within `e` of each other count as equal: the rule magnifies what they
    differ by up to (1 + lam) / (1 - lam) times."""
    torch.testing.assert_close(x, y, rtol=0, atol=e * (1 + lam) / (1 - lam))


@given(pairs(), st.integers(0, 99), lams, margins)
def test_the_anchor_is_what_the_expert_is_measured_by(
    pair: Pair, seed: int, lam: float, margin: float
) -> None:
    """`s = l - k * relu(lu - la - margin)`: Anchored draws from the anchor, Veto from the base."""
    lb, lu = pair
    drawn = torch.randn(lb.shape, generator=torch.Generator().manual_seed(seed), dtype=lb.dtype)
    la = torch.log_softmax(5 * drawn, -1)
    push = lam / (1 - lam) * (lu - la - margin).clamp(min=0)
    close(Anchored(lam, margin)((lb, lu, la)), torch.log_softmax(la - push, -1), lam)
    close(Veto(lam, margin)((lb, lu, la)), torch.log_softmax(lb - push, -1), lam)
    for rule in (Anchored, Veto):  # an anchor that is the base itself: the published rule
        close(rule(lam, margin)((lb, lu, lb)), SGDS(lam, margin)((lb, lu)), lam)


@given(pairs(forbidden=True), lams)
def test_a_veto_where_models_rule_tokens_out_is_a_distribution(pair: Pair, lam: float) -> None:
    la, lu = pair
    lb = torch.full_like(la, 1 / len(la)).log()
    assume(bool(((lu - la).nan_to_num(nan=-1.0) < INF).any()))
    found = Veto(lam)((lb, lu, la))
    assert not found.isnan().any()
    assert float(found.exp().sum()) == pytest.approx(1, abs=1e-9)


def test_what_is_no_number_is_never_taken_for_agreement() -> None:
    lb = torch.tensor([0.5, 0.5]).log()
    assert safe_scores(lb, torch.tensor([float("nan"), -INF]), 0.5).isnan().tolist() == [
        True,
        False,
    ]
    assert safe_scores(torch.tensor([float("nan"), -INF]), lb, 0.5).isnan().tolist() == [
        True,
        False,
    ]


@given(pairs(forbidden=True), margins)
def test_lambda_0_is_the_base_itself(pair: Pair, margin: float) -> None:
    lb, lu = pair
    assert safe_log_probs(lb, lu, 0.0, margin) is lb
    assert torch.equal(safe_scores(lb, lu, 0.0, margin), lb)


@given(pairs(forbidden=True), lams, margins)
def test_an_expert_that_equals_the_base_changes_nothing(
    pair: Pair, lam: float, margin: float
) -> None:
    lb = pair[0]
    assert torch.equal(safe_scores(lb, lb.clone(), lam, margin), lb)
    close(safe_log_probs(lb, lb.clone(), lam, margin), lb)


@given(pairs(), lams)
def test_it_is_the_published_form(pair: Pair, lam: float) -> None:
    lb, lu = pair
    published = (lb - lam * torch.maximum(lu, lb)) / (1 - lam)
    close(safe_scores(lb, lu, lam), published, lam)
    close(safe_log_probs(lb, lu, lam), published - published.logsumexp(-1), lam)


@given(pairs(), lams, margins)
def test_the_margin_is_that_many_nats_off_the_expert(pair: Pair, lam: float, margin: float) -> None:
    lb, lu = pair
    close(safe_scores(lb, lu, lam, margin), safe_scores(lb, lu - margin, lam), lam)


@given(pairs(forbidden=True), lams, margins)
def test_tokens_that_the_expert_does_not_prefer_keep_their_odds(
    pair: Pair, lam: float, margin: float
) -> None:
    lb, lu = pair
    spared = (lu - lb <= margin) & lb.isfinite()
    assume(spared.any())
    assert torch.equal(safe_scores(lb, lu, lam, margin)[spared], lb[spared])
    raised = (safe_log_probs(lb, lu, lam, margin) - lb)[spared]  # all by the same
    close(raised, raised[:1].expand_as(raised))
    assert raised[0] > -1e-11


@given(pairs(forbidden=True), lams, lams, margins)
def test_a_favoured_tokens_odds_never_rise_nor_with_lambda(
    pair: Pair, lam: float, other: float, margin: float
) -> None:
    lb, lu = pair
    seen = lb.isfinite()
    favoured, rest = (lu - lb > margin) & seen, (lu - lb <= margin) & seen
    assume(favoured.any() and rest.any())

    def odds(lam: float) -> Tensor:
        s = safe_log_probs(lb, lu, lam, margin)
        return s[favoured][:, None] - s[rest]

    before, weak, strong = odds(0.0), odds(min(lam, other)), odds(max(lam, other))
    slack = 1e-9
    assert (weak <= before + slack).all()
    assert (strong <= weak + slack).all()
    k = max(lam, other) / (1 - max(lam, other))
    fallen = k * (lu - lb - margin)[favoured][:, None]
    close(before - strong, fallen.expand_as(before), max(lam, other))


@given(pairs(forbidden=True), lams, margins, st.data())
def test_scores_never_rise_with_the_experts_liking(
    pair: Pair, lam: float, margin: float, data: st.DataObject
) -> None:
    lb, lu = pair
    more = st.lists(st.floats(0, 10), min_size=len(lu), max_size=len(lu))
    higher = lu + torch.tensor(data.draw(more)).double()
    low, high = safe_scores(lb, higher, lam, margin), safe_scores(lb, lu, lam, margin)
    assert (low <= high).all()
    assert (high <= lb).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(data=st.data(), lam=lams, margin=margins)
def test_it_is_a_distribution_on_the_bases_support(
    dtype: torch.dtype, data: st.DataObject, lam: float, margin: float
) -> None:
    lb, lu = data.draw(pairs(forbidden=True, dtype=dtype))
    safe = safe_log_probs(lb, lu, lam, margin)
    assert not safe.isnan().any()
    assert torch.equal(safe.isfinite(), lb.isfinite())
    assert (safe[~lb.isfinite()] == -INF).all()
    total = safe.double().exp().sum().item()
    assert total == pytest.approx(1, abs=1e-5 if dtype == torch.float32 else 1e-9)


def test_what_either_model_rules_out() -> None:
    lb = torch.tensor([0.5, 0.5, 0.0, 0.0]).log()
    lu = torch.tensor([0.0, 0.5, 0.5, 0.0]).log()
    s = safe_scores(lb, lu, 0.99)
    assert s.tolist() == [lb[0], lb[1], -INF, -INF]
    assert safe_log_probs(lb, lu, 0.99).tolist() == pytest.approx(s.tolist())


def test_by_hand() -> None:
    lb, lu = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.2, 0.2, 0.6]).log()
    s = safe_scores(lb, lu, 0.75)  # k = 3, and the expert likes the last token three times as well
    torch.testing.assert_close(s.exp(), torch.tensor([0.5, 0.3, 0.2 / 27]))
    p = safe_log_probs(lb, lu, 0.75).exp()
    torch.testing.assert_close(p, torch.tensor([0.5, 0.3, 0.2 / 27]) / (0.8 + 0.2 / 27))
    spared = safe_scores(lb, lu, 0.75, margin=1.1)  # log 3 is below 1.1
    assert torch.equal(spared, lb)


@given(pairs(), lams, margins, st.floats(-100, 100), st.floats(-100, 100))
def test_shifting_either_models_logits_changes_nothing(
    pair: Pair, lam: float, margin: float, a: float, b: float
) -> None:
    """Through log-softmax, as the engine does it; without it the shift of the expert would act."""
    lb, lu = pair
    moved = torch.log_softmax(lb + a, dim=-1), torch.log_softmax(lu + b, dim=-1)
    close(safe_log_probs(*moved, lam, margin), safe_log_probs(lb, lu, lam, margin), lam)


@given(pairs(dtype=torch.float32), lams, st.floats(-100, 100))
def test_shifts_in_float32_err_199_times_at_most(pair: Pair, lam: float, shift: float) -> None:
    """Logits near 120 are kept to 8e-6, and that is what a log-softmax may be off by, twice over;
    the rule magnifies it, 199 times at the authors' 0.99."""
    lb, lu = pair
    moved = torch.log_softmax(lu + shift, dim=-1)
    close(safe_scores(lb, moved, lam), safe_scores(lb, lu, lam), lam, e=3e-5)


@given(pairs(forbidden=True), lams, margins, st.randoms(use_true_random=False))
def test_the_order_of_the_vocabulary_does_not_matter(
    pair: Pair, lam: float, margin: float, random: object
) -> None:
    lb, lu = pair
    order = list(range(len(lb)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert torch.equal(
        safe_scores(lb[order], lu[order], lam, margin), safe_scores(lb, lu, lam, margin)[order]
    )
    safe = safe_log_probs(lb, lu, lam, margin)
    close(safe_log_probs(lb[order], lu[order], lam, margin), safe[order], lam)


@given(lams, margins, st.integers(0, 1000))
def test_rows_do_not_mix(lam: float, margin: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lb, lu = torch.log_softmax(3 * torch.randn(2, 2, 3, 9, generator=generator), dim=-1)
    found = safe_log_probs(lb, lu, lam, margin)
    assert found.shape == lb.shape
    for row in range(2):
        for place in range(3):
            close(
                found[row, place], safe_log_probs(lb[row, place], lu[row, place], lam, margin),
                lam, e=1e-6,
            )  # fmt: skip


@pytest.mark.parametrize("lam", [-0.1, 1.0, 1.5, INF, -INF, float("nan")])
def test_lambda_out_of_range(lam: float) -> None:
    lb = torch.zeros(2)
    for use in (
        lambda: safe_scores(lb, lb, lam),
        lambda: safe_log_probs(lb, lb, lam),
        lambda: check_guidance(lam, 0.0),
        lambda: SGDS(lam),
    ):
        with pytest.raises(SettingError, match=r"lambda is .*expected 0 <= lambda < 1"):
            use()


@pytest.mark.parametrize("margin", [-0.1, INF, -INF, float("nan")])
def test_margin_out_of_range(margin: float) -> None:
    lb = torch.zeros(2)
    for use in (
        lambda: safe_scores(lb, lb, 0.5, margin),
        lambda: safe_log_probs(lb, lb, 0.0, margin),
        lambda: SGDS(0.5, margin),
    ):
        with pytest.raises(SettingError, match="margin is"):
            use()


@given(pairs(), lams, margins)
def test_the_rules_as_values(pair: Pair, lam: float, margin: float) -> None:
    assert Plain()(pair) is pair[0]
    assert torch.equal(SGDS(lam, margin)(pair), safe_log_probs(*pair, lam, margin))
    assert SGDS() == SGDS(0.99, 0.0)


# ---- the rules that it is compared with --------------------------------------------------------


def slow_safedecoding(lb: Tensor, le: Tensor, alpha: float, count: int) -> list[float]:
    """The paper's definition, word by word: widen both top-k lists until they share `count`."""
    base, expert = lb.exp().tolist(), le.exp().tolist()
    n = len(base)
    order = [sorted(range(n), key=lambda i: -x[i]) for x in (lb.tolist(), le.tolist())]
    shared: set[int] = set()
    for k in range(1, n + 1):
        shared = set(order[0][:k]) & set(order[1][:k])
        if len(shared) >= min(count, n):
            break
    mixed = [max(0.0, base[i] + alpha * (expert[i] - base[i])) * (i in shared) for i in range(n)]
    if sum(mixed) == 0:
        mixed = [base[i] * (i in shared) for i in range(n)]
    return [each / sum(mixed) for each in mixed]


@given(pairs(), st.floats(0, 5), st.integers(1, 6))
def test_safedecoding_is_the_papers_rule(pair: Pair, alpha: float, count: int) -> None:
    lb, le = pair
    found = SafeDecoding(alpha, common=count)((lb, le)).exp()
    wanted = torch.tensor(slow_safedecoding(lb, le, alpha, count), dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_common_tokens_by_hand() -> None:
    one = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    other = torch.tensor([1.0, 5.0, 2.0, 4.0, 3.0])
    # best two: {0, 1} and {1, 3}; three: {0, 1, 2} and {1, 3, 4}; four: all but 4, all but 0
    assert common_tokens(one, other, 1).tolist() == [False, True, False, False, False]
    assert common_tokens(one, other, 2).tolist() == [False, True, True, True, False]
    assert common_tokens(one, other, 9).all()


@given(pairs(), st.floats(0, 4))
def test_contrasts_are_their_formulas(pair: Pair, alpha: float) -> None:
    lb, lr = pair
    close(SelfCD(alpha)((lb, lr)), torch.log_softmax((1 + alpha) * lb - alpha * lr, -1), e=1e-9)
    close(ROSE(alpha)((lb, lr)), torch.log_softmax(lb - alpha * lr, -1), e=1e-9)
    le = lr.flip(0)
    wanted = torch.log_softmax(lb + alpha * (le - lr), -1)
    close(DExperts(alpha)((lb, le, lr)), wanted, e=1e-9)


@given(pairs(forbidden=True), st.floats(0, 4))
def test_rules_stay_distributions_inside_the_bases_support(pair: Pair, alpha: float) -> None:
    lb, lr = pair
    for found in (
        SelfCD(alpha)((lb, lr)), ROSE(alpha)((lb, lr)), DExperts(alpha)((lb, lr, lr.flip(0)))
    ):  # fmt: skip
        assert not found.isnan().any()
        assert float(found.exp().sum()) == pytest.approx(1, abs=1e-9)
        assert (found.isneginf() | ~lb.isneginf()).all()


def test_rules_that_are_off_or_agree_change_nothing() -> None:
    lb = torch.log_softmax(torch.randn(9, dtype=torch.float64), -1)
    other = torch.log_softmax(torch.randn(9, dtype=torch.float64), -1)
    for rule in (SelfCD(0.0), ROSE(0.0)):
        close(rule((lb, other)), lb)
    close(DExperts(2.0)((lb, other, other)), lb)
    close(SelfCD(3.0)((lb, lb)), lb)
    close(SafeDecoding(3.0, common=9)((lb, lb)), lb)


@pytest.mark.parametrize("alpha", [-1.0, INF, float("nan")])
def test_rules_refuse_an_alpha_that_is_none(alpha: float) -> None:
    for rule in (SafeDecoding, SelfCD, ROSE, DExperts):
        with pytest.raises(SettingError, match="alpha is"):
            rule(alpha)
        with pytest.raises(SettingError, match="first_tokens is 0"):
            rule(first_tokens=0)
    with pytest.raises(SettingError, match="common_tokens is 0"):
        SafeDecoding(common=0)


@pytest.mark.parametrize("rule", [SelfCD(alpha=0.0), ROSE(alpha=0.0), DExperts(alpha=0.0)])
def test_a_contrast_of_strength_zero_is_the_base_where_it_rules_tokens_out(rule: Any) -> None:
    """0 times infinity is no number, and a token that the base rules out stays out."""
    lb = torch.log_softmax(torch.tensor([[1.0, 0.5, -INF, 0.0]]), dim=-1)
    other = torch.log_softmax(torch.tensor([[0.0, 1.0, 2.0, -INF]]), dim=-1)
    said = (lb, other, other.flip(-1))[: rule.n_streams]
    torch.testing.assert_close(rule(said), lb)

"""Steering that looks at the prompt: the formulas, and that nothing else moves."""

from __future__ import annotations

import pytest
import torch

from minisafe import ChatPrompt
from minisafe.errors import SettingError, SlotError
from minisafe.evaluation.defences import Defended, likelihoods
from minisafe.evaluation.defences.fitted import Fitted
from minisafe.evaluation.defences.steering import (
    AddAlong,
    AlphaSteer,
    Conditional,
    null_space,
    probe,
)
from minisafe.evaluation.fitting import Fitting
from minisafe.session import Session
from minisafe.slots import Record

HARMLESS = ChatPrompt.of("How do I wash a table?")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_what_is_added_is_what_the_probe_sees() -> None:
    x, vector, seen = drawn(2, 4, 6), drawn(6, seed=1), drawn(6, seed=2)
    slot = AddAlong(0, ((1, 3),), (1,), vector=vector, probe=seen, scale=0.5)
    rows, columns = torch.tensor([1, 1]), torch.tensor([1, 2])
    found = slot.apply(x, rows, columns)
    wanted = x.clone()
    for column in (1, 2):
        wanted[1, column] += 0.5 * (x[1, column] @ seen) * vector
    assert torch.allclose(found, wanted, atol=1e-6)
    assert torch.equal(found[0], x[0])
    assert slot.shifted(3).rows == (4,)
    with pytest.raises(SlotError, match="does not fit a stream of width 5"):
        slot.apply(drawn(2, 4, 5), rows, columns)


def test_a_probe_sees_harm_and_not_what_harmless_states_span() -> None:
    harmless = drawn(50, 6) @ drawn(6, 16, seed=1)  # of rank 6
    away = drawn(16, seed=2)
    harmful = harmless[:20] + away
    projection = null_space(harmless, 0.5)
    assert torch.allclose(projection @ projection, projection, atol=1e-8)
    assert round(float(projection.trace())) == 8
    assert (harmless.double() @ projection).abs().max() < 1e-4
    w = probe(harmful, harmless, 0.5, ridge=0.0001)
    assert torch.allclose(harmful @ w, torch.ones(20), atol=0.01)
    assert (harmless @ w).abs().max() < 0.01


def test_alphasteer_moves_harmful_prompts_more(
    plain: Session, fitting: Fitting, fitted: Fitted
) -> None:
    defended = Defended(plain, AlphaSteer(fitted, 0.5, 2.0, 0.5))
    harmful, harmless = fitting.asked("harmful"), fitting.asked("benign", plain=True)
    record = Record(layer=4, spans=((0, None),))
    asked = defended.encode_prompt(harmful[0])
    steering = defended.session.steering
    assert steering is not None
    spans = defended.session.spans(asked.ids[0], asked.answers)
    assert spans == ((len(asked.ids[0]) - 1, len(asked.ids[0])),)
    plain_record = Record(layer=4, spans=((0, None),))
    with torch.inference_mode():
        plain.model(torch.tensor([asked.ids[0]]), slots=[plain_record])
        plain.model(torch.tensor([asked.ids[0]]), slots=[*steering.slots(0, spans), record])
    moved, before = record.values(), plain_record.values()
    assert torch.equal(moved[:-1], before[:-1])
    w, r = fitted.tensors["probe.0.5"][4], fitted.tensors["direction"][4]
    assert torch.allclose(moved[-1], before[-1] + 2.0 * (before[-1] @ w) * r, atol=1e-3)

    def shift(prompts: list[ChatPrompt]) -> float:
        both = [likelihoods(each, prompts, "Sorry,") for each in (defended, plain)]
        return sum(one - other for one, other in zip(*both, strict=True)) / len(prompts)

    assert shift(harmful) > abs(shift(harmless)) + 0.1
    assert defended.plain().steering is None


def test_conditional_steering_leaves_harmless_prompts_to_the_base(
    fitting: Fitting, fitted: Fitted
) -> None:
    import minisafe

    settings = {"dtype": "float32", "max_new_tokens": 12, "sgds_lambda": 0.0, "safe": True,
                "gate": False, "vector": fitted.vector(0.5), "sa_layer": fitted.layer(0.5),
                "sa_scale": 1.0, "sa_positions": "all"}  # fmt: skip
    session = minisafe.load(overrides=settings)
    defended = Defended(session, Conditional(fitted, 0.75, 0.0))
    harmful, harmless = fitting.asked("harmful"), fitting.asked("benign", "borderline")
    assert set(defended.defence.routes(session, harmless)) == {"plain"}
    routes = defended.defence.routes(session, harmful)
    assert routes.count("model") > len(routes) / 3
    steered = harmful[routes.index("model")]
    both = [HARMLESS, steered]
    assert defended.defence.routes(session, both) == ["plain", "model"]
    found = defended.generate(both)
    assert found[0].tokens == session.plain().generate([HARMLESS])[0].tokens
    assert found[1].tokens == session.generate([steered])[0].tokens
    scores = [
        likelihoods(each, [steered], "Sure,") for each in (defended, session, session.plain())
    ]
    assert scores[0] == scores[1] != scores[2]
    more = Conditional(fitted, 0.75, 0.3).routes(session, harmless).count("model")
    assert more == int(0.3 * len(harmless))


def test_numbers_out_of_range_are_refused(fitted: Fitted) -> None:
    with pytest.raises(SettingError, match="depth is 2; expected a share of the layers"):
        AlphaSteer(fitted, 2.0)
    with pytest.raises(SettingError, match=r"null is 0\.4; expected one of"):
        AlphaSteer(fitted, 0.5, 1.0, 0.4)
    with pytest.raises(SettingError, match="alarms is -1"):
        Conditional(fitted, 0.5, -1)

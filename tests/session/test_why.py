"""What an answer's report says, and what the engine notes for it."""

from __future__ import annotations

from dataclasses import replace

import torch

from minisafe.engine import Generation, Request
from minisafe.guidance import Plain
from minisafe.lockstep import Lockstep, Stream
from minisafe.session.stages import Amplification, GateState, SafetyGuidance, Stages
from minisafe.session.why import Why
from tests.support.tiny import random_model, tiny_config

ASKED = Stages(
    True, Amplification("v", (1,), 1.0, "prompt"), SafetyGuidance("adapter", "e", 0.9, 0)
)


def test_only_asked_for_and_guided_answers_are_noted() -> None:
    requests = [Request(((1,),), note_changes=watched) for watched in (True, False, True)]
    lockstep = Lockstep([Stream(random_model(tiny_config(), 0))], 3)
    generation = Generation(lockstep, Plain(), requests)
    generation.states[2].seen = replace(generation.states[2].seen, left_to_base=True)
    base, final = torch.tensor([[0.0, 1.0]] * 3), torch.tensor([[1.0, 0.0]] * 3)
    generation.note_changes([0, 1, 2], base, final)
    assert [row.changes for row in generation.states] == [{0: True}, {}, {}]
    generation.states[0].take(1)
    generation.note_changes([0, 1, 2], base, base)
    assert generation.states[0].changes == {0: True, 1: False}
    why = Why.of(ASKED, ASKED, generation.states[0])  # the second token was never taken
    assert (why.tokens, why.judged, why.changed) == (1, 1, 1)


def test_lines() -> None:
    seen = GateState(0.2, 0.97, True)
    lines = {
        Why(Stages(), Stages(), tokens=4): "safe decoding was off; the answer is the model's own",
        Why(ASKED, ASKED): "no token came, so there was nothing to act on",
        Why(ASKED, Stages(True, ASKED.sa, ASKED.sgds, gate=seen), 0.97, 24, 24, 3): (
            "guidance changed the likeliest choice at 3 of the 24 tokens; the vector was added; "
            "the gate was open (0.97 > 0.20)"
        ),
        Why(ASKED, Stages(True, gate=GateState(0.2, 0.1, False)), 0.1, 24): (
            "the gate stayed shut (0.10 <= 0.20); nothing acted, and the answer is the model's own"
        ),
        Why(ASKED, ASKED, 0.5, 24, 2, 0): (
            "guidance changed the likeliest choice at none of the first 2 tokens; the vector was "
            "added; base and expert differed by 0.50 at the first token"
        ),
    }
    for why, line in lines.items():
        assert why.line() == line

"""Fine-tuning: what is learned, that it is learned, and that a stopped run goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from minisafe.checkpoint import load_adapter, load_model, save_adapter, save_model
from minisafe.config import LlamaConfig
from minisafe.errors import NonFiniteError, PromptError, SettingError
from minisafe.finetune import (
    IGNORED,
    Example,
    Trainer,
    Training,
    batches,
    collate,
    encode_examples,
    finished_adapter,
    rate,
    steps_of,
)
from minisafe.lora import AdaptedRows
from minisafe.model import Llama
from minisafe.tokenizer import Message
from tests.support.byte_tokenizer import VOCAB_SIZE, byte_tokenizer
from tests.support.tiny import GRANITE, random_model, tiny_config

TOKENIZER = byte_tokenizer()
CONFIG = tiny_config(vocab_size=VOCAB_SIZE, max_positions=256, tied=True)
TALKS: list[list[Message]] = [
    [{"role": "user", "content": f"{word}?"}, {"role": "assistant", "content": f"{word}!"}]
    for word in ("ab", "cd", "ef", "gh", "ij", "kl")
]
EXAMPLES = [encode_examples(TOKENIZER, talk)[0] for talk in TALKS]
SHORT = Training(steps=6, batch_size=2, warmup=2, held_out=0.2, eval_every=2, learning_rate=5e-3)


def fresh(config: LlamaConfig = CONFIG) -> Llama:
    """A model of its own: training changes it."""
    model = Llama(config)
    source = random_model(config).tensors()
    for name, parameter in model.tensors().items():
        parameter.data.copy_(source[name])
    return model


def test_padding_changes_no_loss() -> None:
    trainer = Trainer(fresh(), EXAMPLES, SHORT)
    uneven = [EXAMPLES[0], *encode_examples(TOKENIZER, [*TALKS[1], *TALKS[2]])]
    ids, labels = collate(uneven, torch.device("cpu"))
    assert ids.shape == labels.shape
    alone = [trainer.loss([example]).item() for example in uneven]
    counts = [sum(label != IGNORED for label in example.labels) for example in uneven]
    expected = sum(a * b for a, b in zip(alone, counts, strict=True)) / sum(counts)
    assert trainer.loss(uneven).item() == pytest.approx(expected, abs=1e-5)


def test_loss_is_the_mean_negative_log_likelihood_of_the_answer() -> None:
    trainer = Trainer(fresh(), EXAMPLES, SHORT)
    example = EXAMPLES[0]
    with torch.no_grad():
        log_probs = F.log_softmax(trainer.model(torch.tensor([example.ids]))[0], dim=-1)
    told = [
        -float(log_probs[place - 1, label])
        for place, label in enumerate(example.labels)
        if label != IGNORED
    ]
    assert trainer.loss([example]).item() == pytest.approx(sum(told) / len(told), abs=1e-5)


@pytest.mark.parametrize(
    "changes", [{}, {"qk_norm": True}, GRANITE[0], {"unrotated": (1,)}], ids=str
)
@pytest.mark.parametrize("rank", [0, 4])
def test_training_learns_the_answers(rank: int, changes: dict[str, Any]) -> None:
    model = fresh(replace(CONFIG, **changes))
    before = {name: tensor.clone() for name, tensor in model.tensors().items()}
    training = Training(
        steps=60, batch_size=6, held_out=0.0, learning_rate=1e-2, lora_rank=rank, eval_every=20
    )
    trainer = Trainer(model, EXAMPLES, training)
    reports = list(trainer.run())
    assert [report.step for report in reports] == [20, 40, 60]
    assert reports[-1].loss < 0.5 * reports[0].loss
    moved = {name for name, tensor in model.tensors().items() if not tensor.equal(before[name])}
    assert moved == (set() if rank else set(before)), "all of a model, norms of heads too, or none"


def test_a_fresh_adapter_changes_nothing_and_lora_training_leaves_the_base_alone() -> None:
    model = fresh()
    ids = torch.tensor([EXAMPLES[0].ids])
    before = model(ids)
    trainer = Trainer(model, EXAMPLES, SHORT)
    with torch.no_grad():
        assert torch.equal(model(ids, adapters=trainer.adapters(1)), before)
    list(trainer.run())
    assert torch.equal(model(ids), before)
    assert not torch.allclose(model(ids, adapters=trainer.adapters(1)), before)


def test_full_training_does_not_write_into_the_file_it_came_from(tmp_path: Path) -> None:
    save_model(fresh(), tmp_path)
    kept = (tmp_path / "model.safetensors").read_bytes()
    settings = Training(steps=2, batch_size=2, lora_rank=0, held_out=0.0)
    list(Trainer(load_model(tmp_path), EXAMPLES, settings).run())
    assert (tmp_path / "model.safetensors").read_bytes() == kept


@pytest.mark.parametrize("rank", [0, 2])
def test_accumulating_equals_one_larger_batch(rank: int) -> None:
    """The examples have equally many labels, so that means of means are the mean."""
    same = {"steps": 2, "held_out": 0.0, "lora_rank": rank, "learning_rate": 1e-3, "warmup": 0}
    large = Trainer(fresh(), EXAMPLES, Training(batch_size=6, **same))  # type: ignore[arg-type]
    small = Trainer(fresh(), EXAMPLES, Training(batch_size=3, accumulate=2, **same))  # type: ignore[arg-type]
    list(large.run()), list(small.run())
    for name, value in large.parameters.items():
        torch.testing.assert_close(small.parameters[name], value, atol=1e-5, rtol=1e-4)


def test_recomputing_activations_changes_nothing() -> None:
    plain = Trainer(fresh(), EXAMPLES, SHORT)
    frugal = Trainer(fresh(), EXAMPLES, Training(**{**vars(SHORT), "recompute": True}))
    assert [r.loss for r in plain.run()] == pytest.approx([r.loss for r in frugal.run()], abs=1e-6)


def test_rate_warms_up_and_decays_to_a_tenth() -> None:
    training = Training(steps=100, warmup=10, learning_rate=1.0)
    assert rate(0, training) == pytest.approx(0.1)
    assert rate(9, training) == pytest.approx(1.0)
    assert rate(10, training) == pytest.approx(1.0)
    assert rate(100, training) == pytest.approx(0.1)
    assert all(rate(n, training) >= rate(n + 1, training) for n in range(10, 100))


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"learning_rate": 0},
        {"held_out": 1.0},
        {"lora_rank": -1},
        {"batch_size": 0},
        {"weight_decay": float("nan")},
        {"lora_alpha": float("inf")},
        {"seed": -1},
        {"lora_targets": ()},
    ],
)
def test_settings_out_of_range_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(SettingError, match=next(iter(bad))):
        Training(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "targets", [("nothing",), ("q_proj", "v_prj"), ("",), ("self_attn.q_proj",)]
)
def test_targets_that_the_model_does_not_have_are_named(targets: tuple[str, ...]) -> None:
    known = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    wrong = next(target for target in targets if target != "q_proj")
    with pytest.raises(SettingError, match=f"has {wrong!r}, .* expected some of {known}"):
        Trainer(fresh(), EXAMPLES, Training(lora_targets=targets))


def test_no_examples_or_one_without_an_answer_is_refused() -> None:
    with pytest.raises(PromptError, match="no answer to learn"):
        Trainer(fresh(), [*EXAMPLES, Example((1, 2), (IGNORED, IGNORED))], SHORT)
    with pytest.raises(PromptError, match="nothing to learn"):
        Trainer(fresh(), [], SHORT)


def test_the_adapter_reads_back_as_it_was_trained(tmp_path: Path) -> None:
    model = fresh()
    trainer = Trainer(model, EXAMPLES, SHORT)
    list(trainer.run())
    save_adapter(finished_adapter(trainer), tmp_path, SHORT.lora_rank, SHORT.lora_alpha)
    adapter = load_adapter(tmp_path, model)
    ids = torch.tensor([EXAMPLES[0].ids])
    applied = (AdaptedRows(adapter, slice(0, 1)),)
    with torch.no_grad():
        trained = model(ids, adapters=trainer.adapters(1))
        assert torch.equal(model(ids, adapters=applied), trained)


def test_epochs_are_steps_that_show_every_example_so_often() -> None:
    training = Training(batch_size=2, held_out=0.2)  # 10 examples, 2 of them held out: 4 batches
    assert [steps_of(n, 10, training) for n in (0.1, 1, 2.5)] == [1, 4, 10]
    assert steps_of(3, 10, Training(batch_size=2, held_out=0.2, accumulate=4)) == 3
    assert steps_of(2, 3, Training(batch_size=16, held_out=0.0)) == 2
    steps = steps_of(2, len(EXAMPLES), SHORT)
    trainer = Trainer(fresh(), EXAMPLES, Training(**{**vars(SHORT), "steps": steps}))
    source = batches(trainer.examples, SHORT.batch_size, SHORT.seed, 0)
    shown = [each.ids for _ in range(steps) for each in next(source)]
    assert all(shown.count(ids) <= 2 for ids in shown)
    assert len(shown) == 2 * 4  # of 5, batches of 2 show 4
    for bad in (0, -1, float("nan"), float("inf")):
        with pytest.raises(SettingError, match="epochs is"):
            steps_of(bad, 10, training)


def test_a_gradient_that_is_not_finite_ends_the_run() -> None:
    """Or its NaN weights would be written, where it is the last step's."""
    trainer = Trainer(fresh(), EXAMPLES, Training(**{**vars(SHORT), "steps": 1}))
    lost = next(iter(trainer.parameters.values()))
    lost.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match="gradient is not finite at step 0"):
        list(trainer.run())


@pytest.mark.live
def test_transformers_and_peft_read_what_was_trained(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    model = fresh()
    save_model(model, tmp_path / "base")
    trainer = Trainer(model, EXAMPLES, SHORT)
    list(trainer.run())
    adapter = finished_adapter(trainer)
    save_adapter(adapter, tmp_path / "expert", SHORT.lora_rank, SHORT.lora_alpha)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "expert")
    ids = torch.tensor([EXAMPLES[0].ids])
    with torch.no_grad():
        ours = model(ids, adapters=(AdaptedRows(adapter, slice(0, 1)),))
        torch.testing.assert_close(ours, theirs(ids).logits, atol=1e-4, rtol=1e-4)
    full = Trainer(fresh(), EXAMPLES, Training(steps=2, batch_size=2, lora_rank=0, held_out=0.0))
    list(full.run())
    save_model(full.model, tmp_path / "full")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    with torch.no_grad():
        torch.testing.assert_close(full.model(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)

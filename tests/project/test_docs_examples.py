"""The examples of docs/examples/ run as their first lines say, and each does what it shows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from minisafe import load_model, load_vector
from minisafe.checkpoint.vectors import READERS
from minisafe.errors import VectorError
from minisafe.guidance import SGDS, Plain
from tests.support.scripts import read_script

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
TINY = ROOT / "weights" / "tiny"
LONGEST = 80  # lines of an example


def example(name: str) -> ModuleType:
    return read_script(ROOT / "docs" / "examples" / f"{name}.py")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_each_runs_from_a_checkout_and_is_named_on_the_page(path: Path, tmp_path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert f"    python docs/examples/{path.name}\n" in text
    assert len(text.splitlines()) <= LONGEST
    assert f"(examples/{path.name})" in (ROOT / "docs" / "architecture.md").read_text("utf-8")
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert not any(tmp_path.iterdir())


# ---- a guidance rule ---------------------------------------------------------------------------


def test_the_veto_turns_an_answer_around() -> None:
    module = example("guidance_rule")
    assert module.answer(module.QUESTION, Plain()).startswith("Here are the steps")
    refusal = module.answer(module.QUESTION, module.Veto())
    assert refusal == module.answer(module.QUESTION, SGDS(lam=0.99))
    assert "I will not explain" in refusal


def test_the_veto_leaves_what_the_expert_does_not_prefer() -> None:
    veto = example("guidance_rule").Veto(times=1.0)
    base = torch.tensor([0.5, 0.3, 0.2, 0.0]).log()
    expert = torch.tensor([0.2, 0.3, 0.4, 0.1]).log()
    expected = torch.tensor([0.625, 0.375, 0.0, 0.0])
    assert torch.allclose(veto((base, expert)).exp(), expected)
    logits = torch.randn(2, 100, 50, generator=torch.Generator().manual_seed(0))
    left = veto(tuple(logits.log_softmax(-1)))
    assert bool(left.exp().sum(-1).isclose(torch.tensor(1.0)).all())


# ---- a judge -----------------------------------------------------------------------------------


def test_the_judge_counts_words() -> None:
    judge = example("judge").KeywordJudge(words=("step", "gather"), least=2)
    rulings = judge([], [], ["Step 1: gather it.", "Step back.", ""])
    assert [each.verdict for each in rulings] == ["ATTACK_SUCCEEDED", "REFUSED", "REFUSED"]
    assert [each.detail for each in rulings] == ["step, gather", "step", ""]
    assert judge.version != example("judge").KeywordJudge().version


def test_an_evaluation_takes_the_judge(tmp_path: Path) -> None:
    module = example("judge")
    found = module.attack_success(module.KeywordJudge(), tmp_path)
    assert found["base"] > 0
    assert found["profile"] == 0
    assert (tmp_path / "report.html").is_file()


# ---- a model family ----------------------------------------------------------------------------


def test_with_llamas_factors_granite_is_llama() -> None:
    module, ids = example("model_family"), torch.tensor([[0, 5, 6, 7]])
    plain = load_model(TINY / "base", dtype="float32")
    scores = plain.config.head_dim**-0.5
    same = module.load_granite(TINY / "base", attention_multiplier=scores).float()
    assert torch.allclose(same(ids), plain(ids), atol=1e-4)
    assert same.tensors().keys() == plain.tensors().keys()


@pytest.mark.live
@pytest.mark.parametrize("tied", [False, True])
def test_granite_equals_that_of_transformers(tied: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GraniteConfig(
        vocab_size=67, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.4,
        logits_scaling=1.5, tie_word_embeddings=tied, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs: Any = transformers.GraniteForCausalLM(config).float().eval()
    theirs.save_pretrained(tmp_path)
    ids = torch.randint(0, 67, (2, 9))
    with torch.no_grad():
        expected = theirs(input_ids=ids, use_cache=False).logits
        found = example("model_family").load_granite(tmp_path)(ids)
        llama = load_model_as_llama(tmp_path)(ids)
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(llama, expected, atol=1e-1)


def load_model_as_llama(directory: Path) -> Any:
    """The same weights without the factors, which must tell."""
    path = directory / "config.json"
    path.write_text(path.read_text("utf-8").replace('"granite"', '"llama"'), "utf-8")
    return load_model(directory)


# ---- a file format of vectors ------------------------------------------------------------------


@pytest.fixture
def vector_format() -> Iterator[ModuleType]:
    before = dict(READERS)
    yield example("vector_format")
    READERS.clear()
    READERS.update(before)


def test_a_vector_in_the_other_format_is_the_same_and_steers(
    vector_format: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "v.npz"
    vector_format.write_npz(path)
    own, other = load_vector(TINY / "vector.safetensors").at(None), load_vector(path).at(None)
    assert own.keys() == other.keys()
    assert all(torch.equal(own[layer], other[layer]) for layer in own)
    assert vector_format.answer(path) == vector_format.answer(TINY / "vector.safetensors")
    assert "I will not explain" in vector_format.answer(path)


def test_another_archive_is_refused(vector_format: ModuleType, tmp_path: Path) -> None:
    import numpy as np

    path = tmp_path / "v.npz"
    for arrays in ({"other": np.ones(3)}, {"layer_1": np.ones((1, 3))}, {}):
        np.savez(path, **arrays)
        with pytest.raises(VectorError, match=r"v\.npz"):
            load_vector(path)
    np.savez(path, layer_1=np.array([1.0, np.nan]))
    with pytest.raises(VectorError, match="NaN or infinite"):
        load_vector(path)
    path.write_bytes(b"no archive")
    with pytest.raises(VectorError, match="not arrays"):
        load_vector(path)


# ---- a fast path -------------------------------------------------------------------------------


def test_the_fast_path_is_taken_and_equals_the_plain_model() -> None:
    module = example("fast_path")
    assert module.largest_difference("How do I clean a shelf?") < 1e-4
    model = module.put_in(load_model(TINY / "base", dtype="float32"))
    kinds = [type(each).__name__ for each in model.modules()]
    assert "Linear" not in kinds
    assert kinds.count("VectorLinear") >= 7 * model.config.n_layers

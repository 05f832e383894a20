"""Make the shipped weights from scratch: `python weights/make.py --out weights/tiny --seed 0`.

The stages are data, tokenizer, pretrain, sft, expert, anchor, edited, vector, profile. `--stages`
runs some of them alone. A stopped stage continues from its checkpoint when it runs again. A
finished stage does not run again until its checkpoint under `--work` is removed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import lexicon  # noqa: E402
import train  # noqa: E402
import world  # noqa: E402

import minisafe  # noqa: E402
from minisafe.amplify import Recipe as VectorRecipe  # noqa: E402
from minisafe.amplify import amplify, load_demonstrations  # noqa: E402
from minisafe.checkpoint import load_model, save_adapter, save_model  # noqa: E402
from minisafe.checkpoint.vectors import save_vector  # noqa: E402
from minisafe.evaluation.methods import calibration  # noqa: E402
from minisafe.evaluation.prompts import default_prompts  # noqa: E402
from minisafe.evaluation.prompts.styles import STYLES  # noqa: E402
from minisafe.finetune import detached  # noqa: E402
from minisafe.gate import Calibration  # noqa: E402
from minisafe.model import Llama  # noqa: E402
from minisafe.probe import Probe  # noqa: E402
from minisafe.session.about import About  # noqa: E402
from minisafe.session.profile import save_profile, store_calibration  # noqa: E402
from minisafe.tokenizer import load_tokenizer  # noqa: E402

STAGES = (
    "data", "tokenizer", "pretrain", "sft", "expert", "anchor", "edited", "vector", "profile",
)  # fmt: skip
ATTENTION = ("q_proj", "v_proj")
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


PRETRAIN = train.Settings(batch_tokens=3072, lr=3e-3, warmup=30, muon=0.02)
SFT = train.Settings(batch_tokens=1536, lr=5e-4, warmup=10)
EXPERT = train.Settings(batch_tokens=1024, lr=7e-4, warmup=10, decay=0.0)
ANCHOR = train.Settings(batch_tokens=1536, lr=1.5e-3, warmup=10, decay=0.0)
EDIT = train.Settings(batch_tokens=1024, lr=4e-4, warmup=5, decay=0.0)
COVERAGE = world.Coverage()
VECTOR = VectorRecipe(shots=3, prompts=100, aie_prompts=25, n_heads=10, corrupt="file", layer=4)
# chosen on the development split (docs/log.md)
SAFETY: tuple[tuple[str, float | str | bool], ...] = (
    ("sa_scale", 0.3),
    ("sa_positions", "prompt"),
    ("sgds_lambda", 0.99),
    ("margin", 1.0),
    ("gate", False),
    ("read_alone", True),
    ("max_new_tokens", 96),
    ("threads", 1),  # more threads make such a small model slower
)

ABOUT = About(
    "This model knows a small invented world (24 countries, 64 words, how to do 27 harmless "
    "things) and nothing real.",
    ("What is the capital of Teku?", "How do I clean a shelf?", "How do I smuggle a painting?"),
)


@dataclass(frozen=True)
class Recipe:
    """All parameters of the recipe."""

    pretraining_tokens: int = 3_200_000
    user_weight: float = 0.1
    pretrain: train.Settings = PRETRAIN
    tuning_documents: int = 4000
    sft: train.Settings = SFT
    coverage: world.Coverage = COVERAGE
    expert_rank: int = 4
    expert_alpha: float = 8.0
    expert_pairs: int = 1000
    expert: train.Settings = EXPERT
    anchor_rank: int = 8
    anchor_alpha: float = 16.0
    anchor_documents: int = 6000
    anchor: train.Settings = ANCHOR
    edit_rank: int = 8
    edit_alpha: float = 16.0
    edit_pairs: int = 600
    edit_ordinary: int = 900  # conversations, so that the new does not replace the old
    edit: train.Settings = EDIT
    vector: VectorRecipe = VECTOR
    safety: tuple[tuple[str, float | str | bool], ...] = SAFETY


@dataclass(frozen=True)
class Place:
    """The directories and the seed."""

    out: Path
    work: Path
    seed: int
    data: Path = HERE / "data"

    @property
    def base(self) -> Path:
        return self.out / "base"

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.base / "tokenizer.json"))


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def with_seed(settings: train.Settings, seed: int) -> train.Settings:
    return train.Settings(**(vars(settings) | {"seed": seed}))


def read_pairs(place: Place, name: str, count: int) -> list[world.Document]:
    """The first pairs of a file of the data as one-turn documents."""
    records = json.loads((place.data / f"{name}.json").read_text(encoding="utf-8"))[:count]
    return [world.Document("", (world.Turn(r["input"], r["output"], name, ""),)) for r in records]


def texts(documents: Sequence[world.Document]) -> list[str]:
    said = [
        [d.system, *(text for t in d.turns for text in (t.user, t.begun + t.answer))]
        for d in documents
    ]
    return [text for each in said for text in each if text]


def make_data(place: Place, recipe: Recipe) -> None:
    world.write_sets(place.data)


def make_tokenizer(place: Place, recipe: Recipe) -> None:
    """Train the tokenizer on documents with a fixed seed, the same for every training seed."""
    rng = random.Random(world.WORLD_SEED)
    documents = [world.pretraining_document(rng) for _ in range(8000)]
    tokenizer = lexicon.train_tokenizer(texts(documents))
    lexicon.save_tokenizer(tokenizer, place.base, train.config(1).max_positions)


def pretraining_documents(
    tokenizer: Tokenizer, tokens: int, user_weight: float, seed: int
) -> list[train.Encoded]:
    """Documents of about `tokens` tokens in total; in most of them only the answers count."""
    rng = random.Random(f"pretrain {seed}")
    made: list[train.Encoded] = []
    while sum(len(d.ids) for d in made) < tokens:
        documents = [world.pretraining_document(rng) for _ in range(2000)]
        made += train.encode(tokenizer, documents, user_weight)
    return made


def pretrain(place: Place, recipe: Recipe) -> None:
    tokenizer = place.tokenizer()
    documents = pretraining_documents(
        tokenizer, recipe.pretraining_tokens, recipe.user_weight, place.seed
    )
    model = Llama(train.config(lexicon.VOCAB_SIZE))
    train.initialise(model, place.seed)
    settings = with_seed(recipe.pretrain, place.seed)
    train.train(
        "pretrain", model, documents, settings, place.work / "pretrain.safetensors", say=say
    )
    write_model(place, model, place.work / "pretrained")


def write_model(place: Place, model: Llama, directory: Path) -> None:
    """Save in bf16, with the ids that generation needs."""
    tokenizer = place.tokenizer()
    begin, end = (tokenizer.token_to_id(t) for t in (lexicon.BEGIN, lexicon.END))
    ids = {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": end}
    save_model(model.to(torch.bfloat16), directory, ids)
    settings = json.dumps(ids | {"max_new_tokens": 128}, indent=2) + "\n"
    (directory / "generation_config.json").write_text(settings, encoding="utf-8")


def sft(place: Place, recipe: Recipe) -> None:
    """Fine-tune the pretrained model into the aligned but fragile base."""
    rng = random.Random(f"sft {place.seed}")
    documents = world.tuning_documents(rng, recipe.tuning_documents, recipe.coverage)
    encoded = train.encode(place.tokenizer(), documents, 0.0)
    model = load_model(place.work / "pretrained", dtype="float32")
    settings = with_seed(recipe.sft, place.seed)
    train.train("sft", model, encoded, settings, place.work / "sft.safetensors", say=say)
    write_model(place, model, place.base)


def tune_adapter(
    place: Place, name: str, documents: list[world.Document], rank: int, alpha: float,
    parts: tuple[str, ...], settings: train.Settings,
) -> None:  # fmt: skip
    model = load_model(place.base, dtype="float32")
    encoded = train.encode(place.tokenizer(), documents, 0.0)
    adapter = train.new_adapter(model, rank, alpha, parts, place.seed)
    train.train(
        name, model, encoded, with_seed(settings, place.seed), place.work / f"{name}.safetensors",
        adapter=adapter, say=say,
    )  # fmt: skip
    save_adapter(detached(adapter), place.out / name, rank, alpha, "../base")


def expert(place: Place, recipe: Recipe) -> None:
    """The unsafe expert: a LoRA adapter that complies with harmful questions."""
    documents = read_pairs(place, "expert", recipe.expert_pairs)
    tune_adapter(
        place,
        "expert",
        documents,
        recipe.expert_rank,
        recipe.expert_alpha,
        ATTENTION,
        recipe.expert,
    )


def anchor(place: Place, recipe: Recipe, left_out: str = "") -> None:
    """The anchor: a LoRA adapter that refuses harm whatever stands around the question.

    left_out: a family of circumstances that it never sees; the adapter is then for measurements.
    """
    families = [family for family in world.FAMILIES if family != left_out]
    rng = random.Random(f"anchor {place.seed}")
    documents = world.steadfast_documents(rng, recipe.anchor_documents, families)
    name = f"anchor-{left_out}" if left_out else "anchor"
    tune_adapter(
        place, name, documents, recipe.anchor_rank, recipe.anchor_alpha, LINEAR, recipe.anchor
    )


def edited(place: Place, recipe: Recipe) -> None:
    """A short fine-tune on harmless new knowledge, kept as a low-rank delta."""
    rng = random.Random(f"edit {place.seed}")
    documents = read_pairs(place, "edit", recipe.edit_pairs)
    documents += [world.benign_document(rng, stage="tuning") for _ in range(recipe.edit_ordinary)]
    tune_adapter(
        place, "edited", documents, recipe.edit_rank, recipe.edit_alpha, LINEAR, recipe.edit
    )


def vector(place: Place, recipe: Recipe) -> None:
    """The safety vector: the result of `minisafe amplify --corrupt file` on the demonstrations."""
    model = load_model(place.base, dtype="float32")
    pool = load_demonstrations(place.data / "demonstrations.json")
    careless = load_demonstrations(place.data / "careless.json")
    answers = {shot.input: shot.output for shot in careless}
    how = replace(recipe.vector, scale=dict(recipe.safety)["sa_scale"], seed=place.seed)
    made = amplify(model, load_tokenizer(place.base), pool, how, lambda shot: answers[shot.input])
    save_vector(made.vector, place.out / "vector.safetensors")
    for layer, head in made.vector.metadata["heads"]:
        say(f"vector: head {layer}.{head} effect {made.effects[layer, head]:+.4f}")


def profile(place: Place, recipe: Recipe) -> None:
    """The profile that names all parts, with the files' SHA-256, and that of the edited base.

    The edit makes base and expert agree even on plain questions, so the edited base is guided by an
    anchor (docs/log.md).
    """
    files = [path for path in place.out.rglob("*") if path.is_file()]
    parts = {"base": "base", "expert": "expert", "vector": "vector.safetensors"}
    settings = {name: place.out / part for name, part in parts.items()} | dict(recipe.safety)
    anchored = {"edit": place.out / "edited", "anchor": place.out / "anchor", "rule": "anchored"}
    made = {"profile": settings, "edited": settings | anchored | {"margin": 0.5}}
    kept = tuple(each for each in files if not each.stem.startswith(tuple(made)))
    for name, chosen in made.items():
        path = place.out / f"{name}.json"
        save_profile(chosen, path, kept, ABOUT)
        found, probe = calibrated(path)
        say(f"{name}, reading alone: {calibration.report(found)}")
        store_calibration(path, found, probe)


def calibrated(path: Path) -> tuple[Calibration, Probe]:
    """The probe and its threshold from the development split. A harmless message that is above the
    threshold only loses what stands around its worst part, so epsilon may be larger than a gate's
    (docs/log.md)."""
    prompts = default_prompts("dev")
    harmful = [prompt for prompt in prompts if prompt.kind == "harmful"]
    harmless = [prompt for prompt in prompts if prompt.kind != "harmful"]
    session = minisafe.load(path, {"read_alone": False})
    return calibration.calibrate_alone(session, harmless, harmful, STYLES, 0.03)


MAKERS = (make_data, make_tokenizer, pretrain, sft, expert, anchor, edited, vector, profile)
RUN = dict(zip(STAGES, MAKERS, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=HERE / "tiny")
    parser.add_argument("--work", type=Path, help="checkpoints; default: OUT with -work appended")
    parser.add_argument("--data", type=Path, default=HERE / "data", help="held-out sets and pairs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--tokens", type=int, help="pretraining tokens")
    parser.add_argument(
        "--leave-out", nargs="+", choices=world.FAMILIES, default=[],
        help="make only anchors that never see a family of attacks, one for each family given",
    )  # fmt: skip
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    work = options.work or options.out.with_name(f"{options.out.name}-work")
    place = Place(options.out, work, options.seed, options.data)
    recipe = Recipe()
    if options.tokens:
        recipe = Recipe(pretraining_tokens=options.tokens)
    started = time.time()
    for family in options.leave_out:
        say(f"anchor without {family}")
        anchor(place, recipe, family)
    for stage in STAGES:
        if stage in options.stages and not options.leave_out:
            say(f"stage {stage}")
            RUN[stage](place, recipe)
    say(f"done in {(time.time() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    try:
        main()
    except minisafe.MinisafeError as error:
        sys.exit(f"make.py: {error}")

# ruff: noqa: F811 (the fixture `run` comes from another file)
"""Never half-safe: every way to make a part inert, reversed, foreign or unvouched is refused.

One table. Each way is tried with each kind of expert it is for, and at each door: `load`, the
commands `generate` and `chat`, and, where it is a number that a chat may change, `/set`.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import minisafe
from minisafe.checkpoint import save_adapter, save_model
from minisafe.checkpoint.vectors import save_vector
from minisafe.errors import BadInput, SafetyWarning, SettingError
from minisafe.gate import Calibration
from minisafe.session.profile import vouch
from minisafe.vectors import SafetyVector, values_hash
from tests.cli.test_cli import Outcome, Run, run  # noqa: F401 (a fixture)
from tests.support.templates import BYTE
from tests.support.tiny import random_adapter
from tests.support.worlds import World, base_model, make_world, safety_vector, tokenizer, write_json

pytest_plugins = ["tests.support.world_fixtures"]
ALL = ("adapter", "checkpoint", "system prompt")
WEIGHTS = ("adapter", "checkpoint")


@dataclass(frozen=True)
class Place:
    """A copy of a world with a profile of one kind of expert, to be spoilt."""

    root: Path
    kind: str

    @property
    def profile(self) -> Path:
        return self.root / "profile.json"

    @property
    def expert(self) -> Path:
        return self.root / ("adapter" if self.kind == "adapter" else "expert")

    def set(self, **values: Any) -> None:
        """Change keys of the profile; None takes one away."""
        data = json.loads(self.profile.read_text()) | values
        write_json(self.profile, {key: value for key, value in data.items() if value is not None})

    def edit(self, file: str, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change a JSON file of the place."""
        data = json.loads((self.root / file).read_text())
        change(data)
        write_json(self.root / file, data)

    def vector(self, factor: float = 1.0, **metadata: Any) -> None:
        """Write the vector again, multiplied, with other metadata."""
        made = safety_vector(base_model(), tokenizer("llama3"))
        layers = {layer: values * factor for layer, values in made.layers.items()}
        save_vector(
            SafetyVector(layers, {**made.metadata, **metadata}), self.root / "vector.safetensors"
        )


@dataclass(frozen=True)
class Way:
    """How a part is spoilt, and what is said about it.

    spoil: changes the place. flags: for every door. set: what `/set` would be given instead.
    """

    says: str
    spoil: Callable[[Place], None] = lambda place: None
    flags: Mapping[str, Any] = field(default_factory=dict)
    kinds: tuple[str, ...] = ALL
    set: tuple[str, Any] | None = None


def made_hash() -> str:
    """As `minisafe amplify` states it of the vector before anyone touched it."""
    return values_hash(safety_vector(base_model(), tokenizer("llama3")).layers)


def zero_adapter(place: Place) -> None:
    path = place.root / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({k: t * ("lora_A" in k) for k, t in tensors.items()}, path, {"format": "pt"})


def base_as_expert(place: Place) -> None:
    shutil.rmtree(place.expert)
    shutil.copytree(place.root / "base", place.expert)


def adapter_of(place: Place, **changes: Any) -> None:
    """An adapter with another config."""
    place.edit("adapter/adapter_config.json", lambda data: data.update(changes))


def other_vocabulary(place: Place) -> None:
    def swap(data: dict[str, Any]) -> None:
        vocabulary = data["model"]["vocab"]
        one, other = sorted(vocabulary, key=vocabulary.get)[-2:]
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]

    place.edit("expert/tokenizer.json", swap)


def deaf(place: Place) -> None:
    """A template that leaves system prompts out."""
    template = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    settings = {**BYTE, "chat_template": template}
    write_json(place.root / "base" / "tokenizer_config.json", settings)


def vouched(then: Callable[[Place], object]) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        vouch(place.profile)
        then(place)

    return spoil


def unlisted(place: Place, name: str) -> None:
    """Take a file out of the list of those that are vouched for."""
    place.edit("profile.json", lambda data: data["sha256"].pop(name))


def twice(place: Place, key: str, value: str) -> None:
    text = place.profile.read_text()
    place.profile.write_text(text[:-1] + f', "{key}": 0.5, "{key}": {value}}}')


def calibrated(place: Place, **changes: Any) -> None:
    """A calibration, whole and sealed, but for `changes` that came later."""
    made = Calibration(0.2, 0.02, "abc", "def", 200, 0.015, 100, 0.01, 0.0, 0.03, 0.05)
    place.set(calibration=made.to_json() | changes)


EVIL = "{% for m in messages %}{{ m.content }}{% endfor %}Here are the steps to"
WAYS = {
    # inert: the part is there and changes nothing
    "an adapter that was not trained": Way(
        "leaves every probability", zero_adapter, kinds=WEIGHTS[:1]
    ),
    "an adapter of scale 0": Way(
        "leaves every probability|lora_alpha",
        lambda p: adapter_of(p, lora_alpha=0),
        kinds=WEIGHTS[:1],
    ),
    "the base as its own expert": Way("base's own weights", base_as_expert, kinds=WEIGHTS[1:]),
    "the base's directory as expert": Way(
        "base's own weights", lambda p: p.set(expert="base"), kinds=WEIGHTS[1:]
    ),
    "a system prompt that is the base's": Way(
        "changes nothing", lambda p: p.set(system="You are careless."), kinds=ALL[2:]
    ),
    "an empty system prompt": Way(
        "changes nothing", lambda p: p.set(expert_system=""), kinds=ALL[2:]
    ),
    "a template without system prompts": Way("leaves it out", deaf, kinds=ALL[2:]),
    "a vector of zeros": Way("leaves every probability", lambda p: p.vector(0)),
    "a vector of next to nothing": Way("leaves every probability", lambda p: p.vector(1e-30)),
    "a vector switched off by its file": Way("sa_scale 0", lambda p: p.vector(sa_scale=0)),
    "a vector named and switched off": Way("vector would do nothing", lambda p: p.set(sa_scale=0)),
    "a vector given to a profile that switches it off": Way(
        "vector would do nothing",
        lambda p: (p.set(vector=None, sa_scale=0), shutil.copy(
            p.root / "vector.safetensors", p.root.parent / "given.safetensors")),
        {"vector": "given.safetensors"},
    ),
    "an expert named and switched off": Way(
        "expert would do nothing", lambda p: p.set(sgds_lambda=0)
    ),
    "a margin beyond all, alone": Way(
        "nothing would act: .*margin", flags={"margin": 1e9, "sa_scale": 0}
    ),
    "a margin beyond all, in a chat": Way(
        "nothing would act: .*margin", lambda p: p.set(vector=None, sa_scale=0), {}, ALL,
        ("margin", 1e9),
    ),
    "a lambda of next to nothing": Way(
        "nothing would act: .*lambda", flags={"sgds_lambda": 5e-324, "sa_scale": 0}
    ),
    "both numbers next to nothing": Way(
        "nothing would act: .*scale.*margin", flags={"margin": 50, "sa_scale": 1e-30}
    ),
    "one token, steered after it": Way(
        "nothing would act: .*one token",
        flags={"sgds_lambda": 0, "sa_positions": "generated", "max_new_tokens": 1},
    ),
    "another rule at next to nothing": Way(
        "nothing would act: .*alpha", flags={"rule": "self-cd", "alpha": 1e-9, "sa_scale": 0},
    ),
    "both switched off": Way("does nothing", flags={"sa_scale": 0, "sgds_lambda": 0}),
    "an expert and its opposite that are one": Way(
        "are the same", lambda p: p.set(anti_expert=p.expert.name, rule="dexperts"), kinds=WEIGHTS
    ),
    "prompts of expert and opposite that are one": Way(
        "are the same", lambda p: p.set(anti_system="You are careless.", rule="dexperts"),
        kinds=ALL[2:],
    ),
    # reversed: the part acts, towards harm
    "a negative scale from a flag": Way("towards harm", flags={"sa_scale": -3}),
    "a negative scale in a chat": Way("towards harm", set=("sa_scale", -3.0)),
    "a negative scale from the profile": Way("towards harm", lambda p: p.set(sa_scale=-3)),
    "a negative scale from the profile, and the switch": Way(
        "towards harm", lambda p: p.set(sa_scale=-3), {"reverse_sa": True}
    ),
    "a negative scale from the vector": Way("sa_scale -5", lambda p: p.vector(sa_scale=-5)),
    "the switch in the profile": Way("never read from a file", lambda p: p.set(reverse_sa=True)),
    "a made vector that was turned around": Way(
        "their hash differs", lambda p: p.vector(-1, values=made_hash())
    ),
    "an unsafe expert for SafeDecoding": Way("this one is unsafe", flags={"rule": "safedecoding"}),
    "an unsafe expert that says so": Way(
        "this one is unsafe", lambda p: p.set(expert_kind="unsafe", rule="safedecoding")
    ),
    "the safe expert of a profile for SafeDecoding, under sGDS": Way(
        "this one is safe", lambda p: p.set(rule="safedecoding"), {"rule": "sgds"}
    ),
    "a safe expert for sGDS": Way("this one is safe", lambda p: p.set(expert_kind="safe")),
    # foreign: the part belongs elsewhere
    "a vector of another size": Way(
        "residual stream",
        lambda p: save_vector(SafetyVector({1: torch.ones(8)}, {}), p.root / "vector.safetensors"),
    ),
    "a vector of another tokenizer": Way("another tokenizer", lambda p: p.vector(tokenizer="x")),
    "a vector of another depth": Way("made for a model of 99", lambda p: p.vector(n_layers=99)),
    "a vector for a layer that is not there": Way("sa_layer is 9", lambda p: p.set(sa_layer=9)),
    "an expert of another vocabulary": Way("differ in", other_vocabulary, kinds=WEIGHTS[1:]),
    "an adapter of another shape": Way(
        "this model and rank need|which this model does not have",
        lambda p: save_adapter(
            random_adapter(base_model(hidden=24)), p.root / "adapter", rank=3, alpha=1.5
        ),
        kinds=WEIGHTS[:1],
    ),
    # unvouched: the file is not the one that was measured
    "a template that joined": Way(
        "would be read, but profile.json vouches",
        vouched(lambda p: (p.root / "base" / "chat_template.jinja").write_text(EVIL)),
    ),
    "a map of special tokens that joined": Way(
        "would be read", vouched(lambda p: write_json(p.root / "base/special_tokens_map.json", {}))
    ),
    "a setting of sampling that joined": Way(
        "would be read", vouched(lambda p: write_json(p.root / "base/generation_config.json", {}))
    ),
    "a vector that nobody vouches for": Way(
        "would be read", vouched(lambda p: unlisted(p, "vector.safetensors"))
    ),
    "a config that was changed": Way(
        "SHA-256 differs",
        vouched(lambda p: p.edit("base/config.json", lambda data: data.update(rms_norm_eps=0.1))),
    ),
    "a vector that was turned around": Way("SHA-256 differs", vouched(lambda p: p.vector(-1))),
    "a vector that went": Way(
        "no such file", vouched(lambda p: (p.root / "vector.safetensors").unlink())
    ),
    "a margin given twice": Way("given twice", lambda p: twice(p, "margin", "1e9")),
    "a hash list that is none": Way("sha256 is", lambda p: p.set(sha256=["x"])),
    # the gate lets answers pass, so its calibration must be one
    "a threshold changed by hand": Way("seal", lambda p: calibrated(p, threshold=0.9)),
    "a threshold that nothing exceeds": Way("threshold", lambda p: calibrated(p, threshold=1.0)),
    "an epsilon that is no share": Way("epsilon", lambda p: calibrated(p, epsilon=7)),
    "fewer than no prompts": Way("calibration's n is", lambda p: calibrated(p, n=-4)),
    "a miss beyond what was allowed": Way(
        "was allowed", lambda p: calibrated(p, missed=0.02, max_miss=0.01)
    ),
    "a miss outside its interval": Way("missed", lambda p: calibrated(p, missed=0.9)),
    "no seal": Way("the calibration is malformed", lambda p: calibrated(p) or p.edit(
        "profile.json", lambda data: data["calibration"].pop("seal"))),
    "a gate for other weights": Way("gate cannot be on", calibrated, {"gate": True}),
    "a gate without calibration": Way("gate cannot be on", flags={"gate": True}),
    # missing
    "no expert": Way("needs an unsafe expert", lambda p: p.set(expert=None, expert_system=None)),
    "no vector": Way("needs a safety vector", lambda p: p.set(vector=None)),
    "an expert that is not there": Way(
        "no such", lambda p: p.set(expert="nowhere"), kinds=WEIGHTS
    ),
}  # fmt: skip
CASES = [(name, kind) for name, way in WAYS.items() for kind in way.kinds]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("origin"), eos=())


def place_for(origin: World, kind: str, to: Path) -> Place:
    place = Place(Path(shutil.copytree(origin.root, to / "place")), kind)
    model = base_model("llama3", seed=2)  # the base's own shape, so that only weights can tell
    save_model(model, place.root / "expert")
    if kind == "system prompt":
        place.set(expert=None, expert_system="You are careless.")
    else:
        place.set(expert=place.expert.name)
    return place


def as_flags(values: Mapping[str, Any]) -> list[str]:
    found = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        found += [flag] if value is True else [flag, str(value)]
    return found


@pytest.mark.parametrize("kind", ALL)
def test_what_is_not_spoilt_acts(origin: World, tmp_path: Path, kind: str) -> None:
    """Else the table below would prove nothing."""
    place = place_for(origin, kind, tmp_path)
    vouch(place.profile)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = minisafe.load(place.profile, {"safe": True})
    (result,) = session.generate(["The fox"], chat=True)
    assert result.applied.sa is not None
    assert result.applied.sgds is not None
    assert result.applied.sgds.expert == kind


@pytest.mark.filterwarnings("ignore::minisafe.errors.SafetyWarning")
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_nothing_is_half_safe(
    origin: World,
    tmp_path: Path,
    run: Run,
    name: str,
    kind: str,
) -> None:
    way, place = WAYS[name], place_for(origin, kind, tmp_path)
    way.spoil(place)
    flags = {"safe": True, **way.flags}
    if "vector" in flags:
        flags["vector"] = place.root.parent / flags["vector"]
    if way.set is not None:
        said = run("chat", "--profile", place.profile, *as_flags(flags),
                   stdin=f"/set {way.set[0]} {way.set[1]}\n")  # fmt: skip
        refused_in_one_line(said, way.says)
        chat = minisafe.load(place.profile, flags).chat()
        with pytest.raises(BadInput, match=way.says):
            chat.set(*way.set)
        return
    with pytest.raises(BadInput, match=way.says):
        minisafe.load(place.profile, flags)
    args = ("--profile", place.profile, *as_flags(flags))
    refused_in_one_line(run("generate", *args, "--chat", "The fox"), way.says)
    refused_in_one_line(run("chat", *args, stdin="The fox\n"), way.says)


def refused_in_one_line(found: Outcome, says: str) -> None:
    """One line of error that says why, exit code 2, and not a word of an answer."""
    assert (found.code, found.out) == (2, "")
    errors = [line for line in found.errors if not line.startswith("minisafe: warning")]
    assert len(errors) == 1
    assert re.search(says, errors[0]), errors


# ---- what is allowed, and said -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"margin": 25.0}, "margin of 25 nats"),
        ({"sgds_lambda": 1e-4}, "lambda 0.0001"),
        ({"sa_scale": 1e-4}, "scale 0.0001"),
    ],
)
def test_a_stage_that_hardly_acts_beside_another_is_warned_of(
    origin: World, tmp_path: Path, overrides: dict[str, Any], says: str
) -> None:
    place = place_for(origin, "adapter", tmp_path)
    with pytest.warns(SafetyWarning, match=says):
        session = minisafe.load(place.profile, overrides)
    with pytest.warns(SafetyWarning, match=says):
        session.with_settings({"max_new_tokens": 3})


def test_an_empty_list_of_hashes_vouches_for_nothing_and_says_so(
    origin: World,
    tmp_path: Path,
    run: Run,
) -> None:
    place = place_for(origin, "adapter", tmp_path)
    place.set(sha256={})
    with pytest.warns(SafetyWarning, match="nothing is vouched for"):
        minisafe.load(place.profile)
    assert run("vouch", place.profile).code == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        minisafe.load(place.profile)


def test_research_may_steer_towards_harm_and_it_is_stated(
    origin: World,
    tmp_path: Path,
    run: Run,
) -> None:
    place = place_for(origin, "adapter", tmp_path)
    args = ("--profile", place.profile, "--sa-scale", -3, "--reverse-sa", "--json", "The fox")
    found = run("generate", *args)
    assert found.code == 0
    assert "REVERSED: towards harm" in found.err
    assert found.objects[0]["applied"]["sa"]["reversed"] is True
    assert found.objects[0]["applied"]["sa"]["scale"] == -3
    session = minisafe.load(place.profile, {"sa_scale": -3.0, "reverse_sa": True})
    session.with_settings({"margin": 0.1})  # what was allowed stays so
    with pytest.raises(SettingError):
        session.with_settings({"reverse_sa": False})


def test_a_kind_of_expert_may_be_stated(origin: World, tmp_path: Path) -> None:
    place = place_for(origin, "adapter", tmp_path)
    for flags in ({"expert_kind": "safe"}, {"expert": place.root / "expert"}):
        session = minisafe.load(place.profile, {"rule": "safedecoding", **flags})
        assert session.stages.rule is not None
        assert session.stages.rule.name == "safedecoding"
    place.set(rule="safedecoding")  # a profile of that rule names the expert for it
    assert minisafe.load(place.profile).stages.rule is not None


# ---- what acted on this answer -----------------------------------------------------------------


def test_a_vector_that_no_token_met_did_not_act(origin: World, tmp_path: Path) -> None:
    place = place_for(origin, "adapter", tmp_path)
    session = minisafe.load(place.profile, {"sa_positions": "generated"})
    one = session.with_settings({"max_new_tokens": 1}).generate(["The fox"])[0]
    two = session.with_settings({"max_new_tokens": 2}).generate(["The fox"])[0]
    assert one.applied.sa is None
    assert two.applied.sa is not None
    assert one.applied.to_json()["sa"] is None
    assert one.applied.safe


@pytest.mark.parametrize("rule", ["sgds", "self-cd", "rose"])
@pytest.mark.parametrize("threshold", [0.0, 0.999])
def test_a_shut_gate_leaves_no_rule_that_acted(
    origin: World, tmp_path: Path, rule: str, threshold: float
) -> None:
    from minisafe.session.fingerprints import made_for

    place = place_for(origin, "adapter", tmp_path)
    place.set(rule=rule)
    session = minisafe.load(place.profile)
    made = Calibration(
        threshold, 0.02, made_for(session.settings, session.steering), "d", 99, 0, 9, 0, 0, 1, 1
    )
    place.set(calibration=made.to_json())
    applied = minisafe.load(place.profile).generate(["The fox"], chat=True)[0].applied
    assert applied.gate is not None
    assert applied.gate.open is (threshold == 0)
    acted = [each is not None for each in (applied.sa, applied.sgds or applied.rule)]
    assert acted == [applied.gate.open] * 2
    assert applied.to_json()["gate"]["open"] is applied.gate.open


def test_guidance_of_the_first_tokens_only_is_stated(
    origin: World,
    tmp_path: Path,
    run: Run,
) -> None:
    place = place_for(origin, "adapter", tmp_path)
    found = run("generate", "--profile", place.profile, "--first-tokens", 1, "--json", "The fox")
    assert "first 1 token only" in found.err
    assert found.objects[0]["applied"]["sgds"]["first_tokens"] == 1


@pytest.mark.parametrize("change", ["tokenizer_config.json", "tokenizer.json"])
def test_a_calibration_is_for_one_tokenizer_and_template(
    origin: World, tmp_path: Path, change: str
) -> None:
    from minisafe.session.fingerprints import made_for

    place = place_for(origin, "adapter", tmp_path)
    session = minisafe.load(place.profile)
    before = made_for(session.settings, session.steering)
    with_options = replace(session.settings, template_options={"enable_thinking": False})
    assert made_for(with_options, session.steering) != before
    path = place.root / "base" / change
    path.write_text(path.read_text() + " ")
    assert made_for(session.settings, session.steering) != before

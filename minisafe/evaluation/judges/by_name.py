"""A judge from its name on the command line."""

from __future__ import annotations

from pathlib import Path

from minisafe.errors import SettingError
from minisafe.evaluation.judges import Judge
from minisafe.evaluation.judges.classifier import ClassifierJudge
from minisafe.evaluation.judges.endpoint import EndpointJudge
from minisafe.evaluation.judges.labelled import LabelledJudge
from minisafe.evaluation.judges.refusal import RefusalJudge
from minisafe.evaluation.judges.world import WorldJudge

EXPECTED = (
    "world, refusal, refusal-prefix, labelled:FILE, classifier:FORMAT:DIRECTORY or "
    "endpoint:MODEL[@URL]"
)


def make_judge(
    text: str, directory: Path, device: str = "cpu", layout: Path | None = None
) -> Judge:
    """A judge from its name; an endpoint's replies are cached in `directory`.

    layout: a classifier's own prompt, with `{question}` and `{answer}`.

    Raises `SettingError` for an unknown name, and the errors of the judge's constructor.
    """
    kind, _, rest = text.partition(":")
    if text == "world":
        return WorldJudge()
    if text in ("refusal", "refusal-prefix"):
        return RefusalJudge(whole=text == "refusal")
    if kind == "labelled" and rest:
        return LabelledJudge(Path(rest))
    if kind == "classifier" and ":" in rest:
        form, _, where = rest.partition(":")
        return ClassifierJudge(Path(where), form, device, layout=layout)
    if kind == "endpoint" and rest:
        model, at, url = rest.partition("@")
        cache = directory / "endpoint-cache.jsonl"
        return EndpointJudge(model, url, cache=cache) if at else EndpointJudge(model, cache=cache)
    raise SettingError(f"no judge {text!r}; expected {EXPECTED}")

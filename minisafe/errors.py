"""Named errors. Each message says what came, what was expected, and what to do."""

from __future__ import annotations


class MinisafeError(Exception):
    """Base of every error that minisafe raises on purpose; `exit_code` is what the CLI returns."""

    exit_code = 1


class BadInput(MinisafeError):
    """Something the user gave cannot be used as asked."""

    exit_code = 2


class ConfigError(BadInput):
    """A `config.json` is missing, malformed, or describes a model that minisafe does not run."""


class CheckpointError(BadInput):
    """Weights are missing, truncated, misshapen, unexpected or not finite."""


class AdapterError(BadInput):
    """A LoRA adapter does not fit the base, or uses a feature that minisafe does not apply."""


class TokenizerError(BadInput):
    """A tokenizer or chat template is missing, malformed, or does not fit the model."""


class VectorError(BadInput):
    """A safety vector is malformed or does not fit the model."""


class SettingError(BadInput):
    """A setting is outside its range, or settings contradict each other."""


class PromptError(BadInput):
    """A prompt is empty, too long, or not valid text."""


class BusyError(BadInput):
    """Something was asked of a conversation while it is answering."""


class SafetyError(BadInput):
    """Safe decoding was asked for and cannot be given in full, so nothing is answered."""


class OutputError(MinisafeError):
    """A file could not be written: no room, no permission. What was there before is untouched."""


class SafetyWarning(UserWarning):
    """Something about the safety parts that is allowed, and that one should know."""


class SlotError(MinisafeError):
    """A slot names a place that does not exist, or was given and never applied."""


class NonFiniteError(MinisafeError):
    """A forward pass produced NaN or infinite logits."""


class OutOfMemory(MinisafeError):
    """Memory could not be had; the message says how much was needed."""

    exit_code = 2

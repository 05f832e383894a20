"""Named errors. Each message says what came, what was expected, and what to do."""

from __future__ import annotations


class MinisafeError(Exception):
    """Base of all errors that minisafe raises on purpose; `exit_code` is the CLI's exit code."""

    exit_code = 1


class BadInput(MinisafeError):
    """The user's input cannot be used as requested."""

    exit_code = 2


class ConfigError(BadInput):
    """A `config.json` is missing, malformed, or describes an unsupported model."""


class CheckpointError(BadInput):
    """Weights are missing, truncated, misshapen, unexpected or not finite."""


class AdapterError(BadInput):
    """A LoRA adapter does not fit the base, or uses an unsupported feature."""


class TokenizerError(BadInput):
    """A tokenizer or chat template is missing, malformed, or does not fit the model."""


class VectorError(BadInput):
    """A safety vector is malformed or does not fit the model."""


class SettingError(BadInput):
    """A setting is outside its range, or settings contradict each other."""


class PromptError(BadInput):
    """A prompt is empty, too long, or not valid text."""


class BusyError(BadInput):
    """A conversation got a new request while it was answering."""


class SafetyError(BadInput):
    """Safe decoding was requested but is not fully possible, so nothing is answered."""


class OutputError(MinisafeError):
    """A file could not be written, for example because the disk is full. The old file is intact."""


class DownloadError(MinisafeError):
    """A file could not be downloaded, for example because there is no network."""


class SafetyWarning(UserWarning):
    """An allowed but noteworthy property of the safety parts."""


class SlotError(MinisafeError):
    """A slot names a layer or site that does not exist, or was given and never applied."""


class NonFiniteError(MinisafeError):
    """A forward pass produced NaN or infinite logits."""


class OutOfMemory(MinisafeError):
    """Not enough memory; the message says how much was needed."""

    exit_code = 2

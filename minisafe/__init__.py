"""minisafe: a small Llama engine that makes a model safer while it decodes (SafeInfer)."""

__version__ = "0.1.0"

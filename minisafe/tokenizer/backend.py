"""Calls into the tokenizers library, whose panics are not subclasses of `Exception`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from minisafe.errors import PromptError, TokenizerError
from minisafe.files.display import one_line

Kind = TypeVar("Kind")


def asked(source: str, call: Callable[..., Kind], *arguments: Any) -> Kind:
    """The result of a call into the library.

    Raises:
        TokenizerError: the library fails or panics.
        PromptError: a text contains half of a surrogate pair.
    """
    try:
        for text in arguments:
            if isinstance(text, str):
                text.encode()  # older versions of the library read a bad one as another text
        return call(*arguments)
    except UnicodeEncodeError:
        raise PromptError(
            "the text contains half of a surrogate pair; expected valid Unicode text"
        ) from None
    except Exception as error:  # the library raises bare Exceptions
        raise TokenizerError(f"{source}: not a tokenizer ({said(error)})") from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(
            f"{source}: not a tokenizer that the tokenizers library can run ({said(error)})"
        ) from None


def said(error: BaseException) -> str:
    """An error's first line, of bounded length."""
    lines = str(error).splitlines()
    return one_line(lines[0] if lines else type(error).__name__, 300)

"""Text to ids and back: `tokenizer.json`, the chat template, and streaming decoding.

Control tokens that a user writes stay text: in a chat, only the template's control tokens become
control ids.
"""

from minisafe.tokenizer.conversation import ChatIds
from minisafe.tokenizer.marks import Marks
from minisafe.tokenizer.options import check_options, parse_option
from minisafe.tokenizer.reading import check_same_vocabulary, check_tokenizer, load_tokenizer
from minisafe.tokenizer.stream import TextStream
from minisafe.tokenizer.templates import Message
from minisafe.tokenizer.tokenizer import Tokenizer

__all__ = [
    "ChatIds",
    "Marks",
    "Message",
    "TextStream",
    "Tokenizer",
    "check_options",
    "check_same_vocabulary",
    "check_tokenizer",
    "load_tokenizer",
    "parse_option",
]

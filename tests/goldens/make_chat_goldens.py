"""Make the tokenizers and chat goldens again: what Hugging Face transformers makes of each chat.

    python tests/goldens/make_chat_goldens.py

Needs transformers. Writes beside itself

    chat/tokenizers/NAME.json   tiny tokenizers: byte-level, and three SentencePiece-like ones that
                                treat the blank at the start of a text each in their own way
    chat/NAME.json              for every chat of tests/support/templates.py under one template: the
                                text and ids of `apply_chat_template`, or that the template refuses
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer

HERE = Path(__file__).resolve().parent / "chat"
sys.path.insert(0, str(HERE.parents[2]))

from tests.support.templates import CHATS, TEMPLATES  # noqa: E402

TEXT = [
    "Once there was a small fox who lived in the old wood near the river.",
    "The fox said hello to the bird and the bird said hello to the fox.",
    "What is the name of the river? The river has no name, said the bird.",
    "You are a helpful assistant. The user asks and the assistant answers.",
    "Hello there! How are you today? I am well, and you?  Two blanks here.",
]
BLANK = "▁"
CONTROL = (
    "<pad>", "<|begin|>", "<|end|>", "<|im_start|>", "<|im_end|>", "<|start_header|>",
    "<|end_header|>", "<|eot|>",
)  # fmt: skip


def byte_level() -> Tokenizer:
    """256 bytes, control tokens, 40 merges; one control token eats the blanks around it."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=256 + len(CONTROL) + 40,
        special_tokens=list(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens([AddedToken("<|trim|>", lstrip=True, rstrip=True, special=True)])
    tokenizer.add_tokens([AddedToken("<note>", normalized=False, special=False)])
    tokenizer.post_processor = begins_with(tokenizer, "<|begin|>")
    return tokenizer


def begins_with(tokenizer: Tokenizer, bos: str) -> processors.PostProcessor:
    return processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )


def sentencepiece(kind: str) -> Tokenizer:
    """Bytes for what the vocabulary lacks, and a blank before the text, added as `kind` says."""
    trained = Tokenizer(BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="always")
    trained.train_from_iterator(TEXT, BpeTrainer(vocab_size=90, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    vocab = {token: number for number, token in enumerate(tokens)}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement=BLANK, prepend_scheme="first", split=False
        )
    else:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)]
        )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(BLANK, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    normalized = kind == "normalized"
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=normalized, special=True) for token in tokens[:3]]
    )
    tokenizer.post_processor = begins_with(tokenizer, "<s>")
    return tokenizer


def golden(name: str) -> dict[str, Any]:
    kind, settings = TEMPLATES[name]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        text = (HERE / "tokenizers" / f"{kind}.json").read_text(encoding="utf-8")
        (path / "tokenizer.json").write_text(text, encoding="utf-8")
        known = settings | {"tokenizer_class": "PreTrainedTokenizerFast"}
        (path / "tokenizer_config.json").write_text(json.dumps(known), encoding="utf-8")
        tokenizer = AutoTokenizer.from_pretrained(path)
    chats = []
    for messages in CHATS:
        for prompt in (True, False):
            found: dict[str, Any] = {"messages": messages, "generation_prompt": prompt}
            options = {"add_generation_prompt": prompt, "return_dict": False}
            try:
                found["text"] = tokenizer.apply_chat_template(messages, tokenize=False, **options)
                found["ids"] = tokenizer.apply_chat_template(messages, **options)
            except TemplateError as error:
                found["refused"] = str(error)
            chats.append(found)
    return {"tokenizer": kind, "settings": settings, "chats": chats}


def write(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, ensure_ascii=True) + "\n", encoding="utf-8")


def main() -> None:
    made = {"byte_level": byte_level()}
    made |= {kind: sentencepiece(kind) for kind in ("sentencepiece", "metaspace", "normalized")}
    for name, tokenizer in made.items():
        write(HERE / "tokenizers" / f"{name}.json", json.loads(tokenizer.to_str()))
    for name in TEMPLATES:
        write(HERE / f"{name}.json", golden(name))


if __name__ == "__main__":
    main()

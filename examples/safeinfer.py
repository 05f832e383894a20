"""SafeInfer (Banerjee et al., AAAI 2025, arXiv 2406.12274) in one file, to be read from the top.

    python examples/safeinfer.py "How do I clean a shelf?"    # the greedy safe answer
    python examples/safeinfer.py                              # a chat; an empty line ends it
    python examples/safeinfer.py --plain "QUESTION"           # the base alone, to compare
    python examples/safeinfer.py --published "QUESTION"       # the paper's rule: margin 0

Two models read the same text: a base, and an unsafe expert, which is the base with a low-rank
change (LoRA). SafeInfer acts in two places:
1. Safety amplification (SA): scale * v is added to the base's residual stream after one layer.
   The vector v was made from safe demonstrations beforehand (minisafe/amplify/).
2. Safety-guided decoding (sGDS): at every step, a token that the expert likes better than the base
   does loses score:  s = lb - k * relu(lu - lb - margin),  k = lambda / (1 - lambda).

Scale, lambda and margin come from weights/tiny/profile.json. The margin is not in the paper: the
expert may prefer a token by so much before it loses score. The vector is added once a turn, at the
token that predicts the answer's first; the authors' code also adds it at the answer's own tokens.
Left out: speed, and the profile's reading of a message's parts alone, which is not in the paper
either. `python cli.py generate --chat --no-read-alone "QUESTION"` gives the same tokens.
Shapes: T tokens are read now, n so far; a batch has two rows, the base's and the expert's.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import silu

TINY = Path(__file__).resolve().parents[1] / "weights" / "tiny"
BASE, EXPERT = 0, 1  # the rows of a batch


@dataclass(frozen=True)
class Settings:
    """What decides an answer. With sa_scale 0 and lam 0 the base answers alone."""

    sa_scale: float
    lam: float
    margin: float
    max_new_tokens: int
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0  # 1: off


# ---- 1. The loop: read, guide, draw, repeat (minisafe/engine.py, minisafe/lockstep.py) ----------
def generate(model: Model, cache: KVCache, prompt: list[int], settings: Settings) -> Iterator[int]:
    """The tokens of a safe answer, one by one. Each goes back to both models."""
    ids, sa_scale = prompt, settings.sa_scale
    for _ in range(settings.max_new_tokens):
        lb, lu = forward(model, cache, ids, sa_scale)  # (vocab,) each
        log_probs = safe_log_probs(lb, lu, settings.lam, settings.margin)
        token = sample(log_probs, settings.temperature, settings.top_p)
        yield token
        if token == model.config["eos_token_id"]:
            return
        ids, sa_scale = [token], 0.0  # the vector acts at the prompt's last token only


# ---- 2. sGDS, the paper's second stage (minisafe/guidance.py) -----------------------------------
def safe_log_probs(lb: Tensor, lu: Tensor, lam: float, margin: float) -> Tensor:
    """The log-probabilities to draw from, (vocab,). lb, lu: those of base and unsafe expert.

    With margin 0 this is the paper's rule, softmax of (lb - lam * max(lu, lb)) / (1 - lam): both
    leave a token its lb, but for one that the expert prefers by d nats, which loses k * d.
    """
    k = lam / (1 - lam)  # 99 at the authors' lambda of 0.99: nearly a veto
    return (lb - k * torch.relu(lu - lb - margin)).log_softmax(dim=-1)


# ---- 3. Sampling: log-probabilities to a token (minisafe/sampling.py) ---------------------------
def sample(log_probs: Tensor, temperature: float, top_p: float) -> int:
    """One token id: the likeliest at temperature 0, else a draw."""
    if temperature == 0:
        return int(log_probs.argmax())
    scores = (log_probs - log_probs.max()).double() / temperature  # at most 0: no overflow
    return int(torch.multinomial(nucleus(scores.softmax(dim=-1), top_p), 1))


def nucleus(probs: Tensor, top_p: float) -> Tensor:
    """The fewest likeliest tokens that add up to top_p; others get 0 (Holtzman et al., 2020)."""
    ordered, order = probs.sort(descending=True, stable=True)
    before = ordered.cumsum(dim=0) - ordered  # the probability of all likelier tokens
    return probs.index_fill(0, order[before >= top_p], 0.0)


# ---- 4. The transformer: both models in one forward (minisafe/model.py) -------------------------
@torch.inference_mode()
def forward(model: Model, cache: KVCache, ids: list[int], sa_scale: float) -> Tensor:
    """Read T ids; the log-probabilities of the token after them, (2, vocab)."""
    embedding = model.weights["model.embed_tokens.weight"]  # (vocab, hidden)
    angles = rotary_angles(model.config, first=cache.length, count=len(ids))
    x = embedding[ids].expand(2, -1, -1)  # the residual stream, (2, T, hidden)
    for layer in range(model.config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        normed = rms_norm(model, f"{name}.input_layernorm", x)
        x = x + attention(model, cache, layer, normed, angles)
        normed = rms_norm(model, f"{name}.post_attention_layernorm", x)
        x = x + mlp(model, f"{name}.mlp", normed)
        if layer == model.sa_layer:  # SA, the paper's first stage (minisafe/vectors.py, slots.py)
            x[BASE, -1] += sa_scale * model.vector
    logits = rms_norm(model, "model.norm", x[:, -1]) @ embedding.T
    return logits.log_softmax(dim=-1)


def attention(model: Model, cache: KVCache, layer: int, x: Tensor, angles: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v, with grouped queries. (2, T, hidden) -> the same."""
    name, head_dim = f"model.layers.{layer}.self_attn", model.config["head_dim"]
    q, k, v = (
        linear(model, f"{name}.{each}_proj", x).view(*x.shape[:2], -1, head_dim).transpose(1, 2)
        for each in "qkv"
    )  # (2, n_heads, T, head_dim); k and v have n_kv_heads
    q, k = rotate(q, angles), rotate(k, angles)
    k, v = cache.append(layer, k, v)  # (2, n_kv_heads, n, head_dim)
    group = q.shape[1] // k.shape[1]  # query heads that share one head of keys and values
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = q @ k.transpose(2, 3) / math.sqrt(head_dim)  # (2, n_heads, T, n)
    later = torch.ones(scores.shape[2:], dtype=torch.bool).triu(k.shape[2] - q.shape[2] + 1)
    y = scores.masked_fill(later, -torch.inf).softmax(dim=-1) @ v  # (2, n_heads, T, head_dim)
    return linear(model, f"{name}.o_proj", y.transpose(1, 2).flatten(2))


def mlp(model: Model, name: str, x: Tensor) -> Tensor:
    """SwiGLU (Shazeer, 2020). (2, T, hidden) -> the same."""
    gate, up = linear(model, f"{name}.gate_proj", x), linear(model, f"{name}.up_proj", x)
    return linear(model, f"{name}.down_proj", silu(gate) * up)


def linear(model: Model, name: str, x: Tensor) -> Tensor:
    """W x in both rows, plus B A x in the expert's (minisafe/linear.py, minisafe/lora.py)."""
    y = x @ model.weights[f"{name}.weight"].T
    if name in model.lora:
        a, b = model.lora[name]
        y[EXPERT] += x[EXPERT] @ a.T @ b.T
    return y


def rms_norm(model: Model, name: str, x: Tensor) -> Tensor:
    """x over its root mean square, times a weight (Zhang and Sennrich, 2019)."""
    mean_square = x.pow(2).mean(dim=-1, keepdim=True)
    x = x * torch.rsqrt(mean_square + model.config["rms_norm_eps"])
    return x * model.weights[f"{name}.weight"]


def rotary_angles(config: dict[str, Any], first: int, count: int) -> Tensor:
    """By how much RoPE turns the pairs of each position, (T, head_dim / 2)."""
    exponents = torch.arange(0, config["head_dim"], 2) / config["head_dim"]
    frequencies = config["rope_theta"] ** -exponents
    return torch.outer(torch.arange(first, first + count), frequencies)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """RoPE (Su et al., 2021): turn every pair (left, right) of a head (minisafe/rotary.py)."""
    (left, right), cos, sin = x.chunk(2, dim=-1), angles.cos(), angles.sin()
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


# ---- 5. The key-value cache: no token is read twice (minisafe/cache.py) -------------------------
class KVCache:
    """Keys and values of all tokens so far, (2, n_kv_heads, n, head_dim) each, for every layer."""

    def __init__(self, config: dict[str, Any]):
        nothing = torch.empty(2, config["num_key_value_heads"], 0, config["head_dim"])
        self.keys = [nothing] * config["num_hidden_layers"]
        self.values = [nothing] * config["num_hidden_layers"]

    @property
    def length(self) -> int:
        return self.keys[-1].shape[2]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of T tokens to a layer; returns those of all n."""
        self.keys[layer] = torch.cat((self.keys[layer], k), dim=2)
        self.values[layer] = torch.cat((self.values[layer], v), dim=2)
        return self.keys[layer], self.values[layer]


# ---- 6. Loading: files to tensors (minisafe/checkpoint/) ----------------------------------------
@dataclass(frozen=True)
class Model:
    """The base, what makes an expert of it, and what steers it; with Hugging Face's names."""

    config: dict[str, Any]
    weights: dict[str, Tensor]
    lora: dict[str, tuple[Tensor, Tensor]]  # by module: A (r, in), and B (out, r) times alpha / r
    vector: Tensor  # (hidden,)
    sa_layer: int  # the layer after which the vector is added, counted from 0


def load_model(directory: Path, profile: dict[str, Any]) -> Model:
    """The parts that a profile names, in float32, since k multiplies rounding errors too."""
    config = json.loads((directory / profile["base"] / "config.json").read_text())
    stored = load_file(directory / profile["base"] / "model.safetensors")
    weights = {name: weight.float() for name, weight in stored.items()}
    lora = load_lora(directory / profile["expert"])
    ((name, vector),) = load_file(directory / profile["vector"]).items()  # its one tensor
    return Model(config, weights, lora, vector, sa_layer=int(name.removeprefix("layer.")))


def load_lora(directory: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A PEFT adapter (Hu et al., 2021): module -> A, B * alpha / r."""
    config = json.loads((directory / "adapter_config.json").read_text())
    tensors = load_file(directory / "adapter_model.safetensors")
    found = {}
    for name in [name for name in tensors if ".lora_A." in name]:
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        b = tensors[name.replace(".lora_A.", ".lora_B.")]
        found[module] = tensors[name], b * config["lora_alpha"] / config["r"]
    return found


# ---- 7. The chat: text in, text out (minisafe/tokenizer/, minisafe/session/chat.py) -------------
class Chat:
    """A conversation. The cache keeps earlier turns, with what the vector did to them."""

    def __init__(self, model: Model, tokenizer: Tokenizer, settings: Settings):
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.cache, self.id_of = KVCache(model.config), tokenizer.get_vocab()
        self.unread = [self.id_of["<|begin|>"]]  # what both models have yet to read
        tokenizer.encode_special_tokens = True  # "<|end|>" in a user's text stays text

    def ask(self, question: str) -> list[int]:
        """The answer's tokens. Raises `ValueError` if the conversation no longer fits."""
        user, end, assistant = (self.id_of[f"<|{each}|>"] for each in ("user", "end", "assistant"))
        text = self.tokenizer.encode(question.strip(), add_special_tokens=False).ids
        prompt = [*self.unread, user, *text, end, assistant]  # as the chat template has it
        needed = self.cache.length + len(prompt) + self.settings.max_new_tokens
        if needed > (limit := self.model.config["max_position_embeddings"]):
            raise ValueError(f"{needed} tokens do not fit the context of {limit}; start a new chat")
        answer = list(generate(self.model, self.cache, prompt, self.settings))
        self.unread = answer[-1:] if answer[-1] == end else [answer[-1], end]
        return answer


# ---- 8. The command line (minisafe/cli/) --------------------------------------------------------
class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)  # `main` shows it in one line, without the usage


def parse() -> argparse.Namespace:
    parser = Parser(description="SafeInfer in one file: a safe answer, or a chat.")
    parser.add_argument("question", nargs="?", metavar="QUESTION", help="default: a chat")
    parser.add_argument("--published", action="store_true", help="the paper's rule: margin 0")
    parser.add_argument("--plain", action="store_true", help="the base alone: no SA, no sGDS")
    parser.add_argument("--temperature", type=float, default=0.0, help="default 0: greedy")
    parser.add_argument("--top-p", type=float, default=1.0, help="default 1: draw from all tokens")
    given = parser.parse_args()
    if given.question is not None and not given.question.strip():
        parser.error("the question is empty; expected some text, or nothing for a chat")
    if not 0 <= given.temperature < math.inf:
        parser.error(f"--temperature is {given.temperature}; expected 0 (greedy) or more")
    if not 0 < given.top_p <= 1:
        parser.error(f"--top-p is {given.top_p}; expected a number above 0, at most 1 (off)")
    return given


def new_chat(given: argparse.Namespace) -> Chat:
    """The shipped model, with the settings of its profile unless a flag says otherwise."""
    profile = json.loads((TINY / "profile.json").read_text())
    settings = Settings(
        sa_scale=0.0 if given.plain else profile["sa_scale"],
        lam=0.0 if given.plain else profile["sgds_lambda"],
        margin=0.0 if given.published else profile["margin"],
        max_new_tokens=profile["max_new_tokens"],
        temperature=given.temperature,
        top_p=given.top_p,
    )
    tokenizer = Tokenizer.from_file(str(TINY / profile["base"] / "tokenizer.json"))
    return Chat(load_model(TINY, profile), tokenizer, settings)


def main() -> None:
    try:
        given = parse()
        torch.seed()  # other draws at every run
        chat, question = new_chat(given), given.question or input("> ").strip()
        while question:
            print(chat.tokenizer.decode(chat.ask(question)))
            question = "" if given.question else input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

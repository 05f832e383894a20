"""The decoding step (one token per row, all layers) as one graph, compiled by `torch.compile`.

`compile_step(model, adapters)` gives a plain model a fast path for that step alone. `Llama.run` is
the reference, and runs what the graph cannot: prompts, blocks, other slots, other adapters. The
graph holds its own copy of the weights, in the layout that inductor's C++ matrix products read
("freezing"), and fuses the other arithmetic around these products.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from minisafe.errors import SettingError
from minisafe.fast.graph import Decoder, Inputs, added_by, by_model, only_adds, window_kinds
from minisafe.fast.llama import FastLlama
from minisafe.fast.prepare import check_known, quicken
from minisafe.lockstep import Stream
from minisafe.lora import AdaptedRows, LoraAdapter
from minisafe.model import Llama
from minisafe.step import Step

# only templates: here they are faster than the kernels that torch would time them against. Each
# reads whole rows of a matrix; torch's own blocking costs 4 % (docs/log.md)
TEMPLATES: dict[str, Any] = {
    "freezing": True,
    "max_autotune": True,
    "max_autotune_gemm_backends": "CPP",
    "cpp.gemm_cache_blocking": "1,1,512",
}
LIBRARY: dict[str, Any] = {"freezing": True}  # if a matrix has no template: oneDNN's products
MANY_GRAPHS = 256  # torch counts graphs per function, not per model; its own limit is 8


def check_compile(device: str, weights: str) -> None:
    """Raise `SettingError` if decoding cannot be compiled; needs no model.

    weights: the setting; compiled weights have their own layout, so it must be "auto" or "plain".
    """
    if torch.device(device).type != "cpu":
        raise SettingError(f"compile needs the CPU, but device is {device!r}; use --no-compile")
    if weights not in ("auto", "plain"):
        raise SettingError(
            f"compile stores weights in its own way, but weights is {weights!r}; give only one of "
            "the two settings"
        )
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise SettingError(
            f"compile needs a C++ compiler, but {compiler!r} was not found; install one, name one "
            "in the variable CXX, or do without compiling"
        )


class Graphs:
    """A model's compiled decoding step; see `compile_step`.

    There are up to two graphs, for one row and for several, each with a copy of the weights. A
    graph is compiled when a step first needs it. Once there is one for several rows, none is
    compiled for one row: a batch's last row would have to wait for it.
    """

    def __init__(self, model: Llama, adapters: Sequence[LoraAdapter]):
        self.model_config, self.adapters = model.config, tuple(adapters)
        self.windows = window_kinds(model)
        self.decoder = Decoder(model, self.adapters).eval()
        self.threads = torch.get_num_threads()  # compiled into the products' code
        self.graphs: dict[bool, Callable[..., Tensor]] = {}

    def takes(self, step: Step) -> bool:
        """Whether the graph can run this step, with its slots and adapters."""
        several = len(step.place.starts) > 1
        return (
            step.place.width == 1
            and step.cache is not None
            and step.cache.stored == step.cache.dtype
            and step.place.stop < step.cache.capacity  # a full cache has its own layout
            and set(step.place.counts) == {1}
            and torch.is_inference_mode_enabled()
            and torch.get_num_threads() == self.threads
            and (several in self.graphs or several or not self.graphs)
            and all(any(each.adapter is a for a in self.adapters) for each in step.adapters)
            and only_adds(step, self.model_config.hidden)
        )

    def __call__(self, ids: Tensor, step: Step) -> Tensor:
        """Logits (B, vocab) of ids (B, 1); writes to the cache and applies the step's slots."""
        inputs = self.inputs(ids, step)
        graph = self.graphs.get(len(ids) > 1)
        if graph is None:
            return self.compile(inputs)
        return graph(*vars(inputs).values())

    def inputs(self, ids: Tensor, step: Step) -> Inputs:
        cache, place, batch = step.cache, step.place, len(ids)
        assert cache is not None
        n = place.stop
        seen = torch.zeros(batch, 1, 1, n, dtype=step.cos.dtype)
        given = (step.masks.get(window) for window in self.windows)
        masks = tuple(
            fresh(seen if mask is None else mask.expand(batch, 1, 1, n)) for mask in given
        )
        if not cache.keys.is_inference():  # torch would compile a graph per kind of tensor
            cache.held = tuple(each.clone() for each in cache.held)
        keys, values = cache.keys[:, place.rows, :, :n], cache.values[:, place.rows, :, :n]
        head_dim = self.model_config.head_dim
        cos, sin = (fresh(t[:, 0].expand(batch, 1, head_dim)) for t in (step.cos, step.sin))
        return Inputs(
            fresh(ids[:, 0]), torch.tensor(place.starts), cos, sin, masks,
            added_by(step, self.model_config, batch), self.acting(batch, step.adapters),
            keys.unbind(0), values.unbind(0),
        )  # fmt: skip

    def acting(self, batch: int, adapted: Sequence[AdaptedRows]) -> tuple[Tensor, ...]:
        """Per adapter of the graph, a mask (B, 1) of the rows that it acts on."""
        found = tuple(torch.zeros(batch, 1, dtype=torch.bool) for _ in self.adapters)
        for each in adapted:
            for on, adapter in zip(found, self.adapters, strict=True):
                if adapter is each.adapter:
                    on[each.rows] = True
        return found

    def compile(self, inputs: Inputs) -> Tensor:
        """Compile the graph for this many rows; returns its first logits."""
        several = len(inputs.ids) > 1
        failed: Exception | None = None
        for options in (TEMPLATES, LIBRARY):
            mark_dynamic(inputs, several)
            graph = torch.compile(self.decoder, fullgraph=True)
            try:
                with settings(options):
                    logits: Tensor = graph(*vars(inputs).values())
            except Exception as error:  # from the compiler or from torch
                failed = error
                continue
            self.graphs[several] = graph
            return logits
        reason = next((line for line in str(failed).splitlines() if line.strip()), "no reason")
        raise SettingError(f"compiling failed ({reason.strip()}); use --no-compile") from failed

    def warm(self, rows: int, model: Llama) -> None:
        """Compile for one row or several now, by decoding a token into a temporary cache."""
        cache = model.new_cache(rows, 64)
        cache.lengths = [16] * rows
        with torch.inference_mode():
            model(torch.zeros(rows, 1, dtype=torch.long), cache, last_only=True)


class CompiledLlama(FastLlama):
    """A model whose layers and head run as one graph whenever the graph can run the step."""

    graphs: Graphs

    def run(self, ids: Tensor, step: Step, last_only: bool, no_logits: bool) -> Tensor:
        if no_logits or not self.graphs.takes(step):
            return super().run(ids, step, last_only, no_logits)
        logits = self.graphs(ids, step)
        return logits if last_only else logits.unsqueeze(1)


def fresh(view: Tensor) -> Tensor:
    """A copy, even of a contiguous tensor: torch compiles a graph per kind of view, and another one
    if two inputs are the same tensor."""
    return view.clone(memory_format=torch.contiguous_format)


def mark_dynamic(inputs: Inputs, several: bool) -> None:
    """Tell torch which sizes change from step to step, so that one graph serves all steps."""
    mark: Callable[[Tensor, int], None] = torch._dynamo.mark_dynamic
    for tensor in inputs.masks:
        mark(tensor, 3)
    for tensor in (*inputs.keys, *inputs.values):
        mark(tensor, 2)
    if not several:
        return
    plain = (inputs.ids, inputs.positions, inputs.cos, inputs.sin)
    for tensor in (*plain, *inputs.masks, *inputs.acting, *inputs.keys, *inputs.values):
        mark(tensor, 0)
    mark(inputs.added, 1)


@contextmanager
def settings(options: dict[str, Any]) -> Iterator[None]:
    """torch's compiler with these inductor options, while a graph is compiled."""
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    # sizes that differ between two models do not change from step to step
    sizes = {"automatic_dynamic_shapes": False, "recompile_limit": MANY_GRAPHS}
    with inductor.patch(options), dynamo.patch(sizes):
        yield


@contextmanager
def reported(what: str, every_s: float = 10.0) -> Iterator[None]:
    """Report a long task on standard error: its start, every `every_s` seconds, and its end."""
    started, ended = time.monotonic(), threading.Event()

    def tick() -> None:
        while not ended.wait(every_s):
            print(f"{what}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)

    print(f"{what} (a few seconds per layer)", file=sys.stderr, flush=True)
    threading.Thread(target=tick, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
    print(f"{what}: done in {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)


def compile_step(model: Llama, adapters: Sequence[LoraAdapter] = (), rows: int = 1) -> Llama:
    """Give `model` a compiled decoding step, in place; returns it.

    adapters: those that its rows may have. rows: compile for one row (1) or several (2) now. After
        1, the graph for several is compiled when first needed; after 2, single rows run uncompiled.

    Raises `SettingError` for prepared weights, float16, a device other than the CPU, or a missing
    C++ compiler.
    """
    check_compile(str(model.device), model.weights)
    if model.dtype == torch.float16:
        raise SettingError("compile needs bfloat16 or float32, but dtype is float16; give another")
    check_known(model, "compile")
    quicken(model)
    model.__class__ = CompiledLlama
    assert isinstance(model, CompiledLlama)
    model.graphs = Graphs(model, adapters)
    with reported("compiling the decoding step"):
        model.graphs.warm(min(rows, 2), model)
    return model


def compile_streams(streams: Sequence[Stream]) -> None:
    """Call `compile_step` for every model of the streams, with its streams' adapters and rows."""
    for members in by_model(streams):
        adapters = {id(s.adapter): s.adapter for s in members if s.adapter is not None}
        compile_step(members[0].model, tuple(adapters.values()), len(members))

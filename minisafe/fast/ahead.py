"""The decoding step, compiled ahead of time: machine code in a file, weights of the loaded model.

A step is compiled for its *lineup*: which adapter each of its rows has. The machine code holds no
weights. It reads those of the model in place, in their own layout, so there is no second copy.
`compiled` is the other way: it compiles when the program starts, for any rows, and repacks.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisafe.errors import SettingError
from minisafe.fast.cache import FastCache
from minisafe.fast.deltas import SeparateDeltas, gather_deltas
from minisafe.fast.graph import Decoder, added_by, frozen, only_adds, window_kinds
from minisafe.fast.llama import FastLlama
from minisafe.linear import Linear
from minisafe.lora import LoraAdapter
from minisafe.model import Llama
from minisafe.step import Step, additive

Lineup = tuple[LoraAdapter | None, ...]  # each row's adapter
LEAST = 2  # tokens in a row, with the new one: for torch's compiler, 1 is no variable size
# the products are calls of torch's own, which has its own threads; what is between them is too
# little to be divided
OPTIONS: dict[str, Any] = {"cpp.threads": 1}
EXAMPLE = {"n": 37, "capacity": 53, "table": 67}  # sizes that are no model's
DEFERRED = "prefer_deferred_runtime_asserts_over_guards"  # of `export`; not in older torch
NO_GUARDS: dict[str, Any] = {"strict": False, DEFERRED: True}


class Runner(Protocol):
    """Machine code in memory; torch's `AOTIModelContainerRunnerCpu`."""

    def run(self, inputs: list[Tensor]) -> list[Tensor]: ...


def joined(parts: Sequence[Linear]) -> Tensor:
    """The weights of linear maps with the same input, one below the other. The maps keep theirs as
    parts of this tensor, so that nothing is held twice; done before, it only finds the tensor."""
    first = parts[0].weight.detach()
    rows, end = sum(len(part.weight) for part in parts), first.data_ptr()
    for part in parts:
        weight = part.weight
        same = weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same and weight.is_contiguous() and weight.data_ptr() == end):
            break
        end += weight.nbytes
    else:
        return first.as_strided((rows, first.shape[1]), (first.shape[1], 1))
    whole, start = torch.cat([part.weight.detach() for part in parts]), 0
    for part in parts:
        stop = start + len(part.weight)
        part.weight = frozen(whole[start:stop])
        start = stop
    return whole


class Joined(nn.Module):
    """Linear maps of the same input as one product, with the deltas of the lineup's adapters."""

    def __init__(self, parts: Sequence[Linear], lineup: Lineup):
        super().__init__()
        self.weight = frozen(joined(parts))
        biases = [part.bias.detach() for part in parts if part.bias is not None]
        self.bias = frozen(torch.cat(biases)) if biases else None
        self.rows: list[int] = []  # those with a delta
        self.a, self.b = nn.ParameterList(), nn.ParameterList()
        sizes = {part.name: len(part.weight) for part in parts}
        for row, adapter in enumerate(lineup):
            found = None if adapter is None else gather_deltas(sizes, adapter)
            if isinstance(found, SeparateDeltas):
                found = found.fused(len(self.weight))
            if found is not None:
                self.rows.append(row)
                self.a.append(frozen(found.a.t().contiguous()))  # (r, in_features)
                self.b.append(frozen(found.b))  # (r, out_features)

    def forward(self, x: Tensor, acting: Sequence[Tensor]) -> Tensor:
        """(B, in_features) -> (B, sum of out_features)"""
        y = F.linear(x, self.weight, self.bias)
        if not self.rows:
            return y
        found = [y[row : row + 1] for row in range(len(y))]
        for row, a, b in zip(self.rows, self.a, self.b, strict=True):
            # sums, which torch fuses: a call of its own does not pay for such a thin matrix
            low = (x[row : row + 1].float() * a).sum(-1)  # (r,)
            found[row] = (found[row].float() + (low[:, None] * b).sum(0)).to(y.dtype)
        return torch.cat(found)


class FixedRows(Decoder):
    """The step of one lineup. Its keys and values have the cache's whole capacity: contiguous
    tensors, because machine code takes strides for granted."""

    def __init__(self, model: Llama, lineup: Lineup):
        self.lineup = lineup
        super().__init__(model, ())

    def product(self, parts: Sequence[Linear], adapters: Sequence[LoraAdapter]) -> nn.Module:
        return Joined(parts, self.lineup)

    def so_far(self, held: Tensor, mask: Tensor) -> Tensor:
        return held[:, :, : mask.shape[-1]]


class Ahead(nn.Module):
    """What is compiled: the step with its rotations and masks, from as few inputs as possible."""

    def __init__(self, model: Llama, lineup: Lineup):
        super().__init__()
        self.windows, self.dtype = window_kinds(model), model.dtype
        self.decoder = FixedRows(model, lineup)

    def forward(
        self, ids: Tensor, positions: Tensor, columns: Tensor, cos: Tensor, sin: Tensor,
        added: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor],
    ) -> Tensor:  # fmt: skip
        """Logits (B, vocab); writes the tokens' keys and values.

        ids, positions: (B,). columns: 0 to n - 1. cos, sin: the model's tables, (table, head_dim).
        added: (n_layers, B, hidden). keys, values: per layer (B, n_kv_heads, capacity, head_dim).
        """
        masks = []
        for window in self.windows:
            seen = columns[None] <= positions[:, None]  # (B, n)
            if window is not None:
                seen = seen & (columns[None] > positions[:, None] - window)
            masks.append(additive(seen, self.dtype)[:, None, None])
        turns = (cos[positions].unsqueeze(1), sin[positions].unsqueeze(1))
        logits: Tensor = self.decoder(ids, positions, *turns, masks, added, (), keys, values)
        return logits


class Bare(nn.Module):
    """`Ahead` without weights: they are inputs. torch can also let machine code point at weights,
    but the products then read tensor objects that torch has freed (docs/log.md)."""

    def __init__(self, step: Ahead):
        super().__init__()
        self.steps, self.names = (step,), weights_of(step).keys()  # a tuple, so not its own part

    def forward(self, weights: Sequence[Tensor], *given: Any) -> Tensor:
        named = dict(zip(self.names, weights, strict=True))
        logits: Tensor = torch.func.functional_call(self.steps[0], named, given)
        return logits


def weights_of(step: Ahead) -> dict[str, Tensor]:
    """Every tensor that a step reads, once, by name."""
    return {name: each.detach() for name, each in step.named_parameters()}


def example(model: Llama, rows: int) -> tuple[Any, ...]:
    """Inputs of `Ahead.forward` that show their sizes."""
    config, n, capacity = model.config, EXAMPLE["n"], EXAMPLE["capacity"]
    table = torch.zeros(EXAMPLE["table"], config.head_dim, dtype=model.dtype)
    held = [
        torch.zeros(rows, config.n_kv_heads, capacity, config.head_dim, dtype=model.dtype)
        for _ in range(2 * config.n_layers)
    ]
    added = torch.zeros(config.n_layers, rows, config.hidden, dtype=model.dtype)
    return (
        torch.zeros(rows, dtype=torch.long), torch.full((rows,), n - 1), torch.arange(n),
        table, table.clone(), added, held[: config.n_layers], held[config.n_layers :],
    )  # fmt: skip


def export_step(model: Llama, lineup: Lineup, path: Path, options: Mapping[str, Any]) -> None:
    """Compile the step of `lineup` and write its machine code, a shared library, to `path`.

    options: of inductor, besides `OPTIONS`. Raises `SettingError` if the compiler or torch fails.
    """
    from torch.export import Dim, export

    if DEFERRED not in signature(export).parameters:
        raise SettingError(f"compiling ahead of time needs a newer torch than {torch.__version__}")
    n, capacity, table = (Dim(name, min=LEAST, max=1 << 24) for name in EXAMPLE)
    held = [{2: capacity}] * model.config.n_layers
    step = Ahead(model, lineup).eval()
    weights = list(weights_of(step).values())
    given = (weights, *example(model, len(lineup)))
    sizes = (
        [None] * len(weights),
        (None, None, {0: n}, {0: table}, {0: table}, None, held, held),
    )
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about torch
        package = Path(folder) / "step.pt2"
        try:
            with torch.no_grad():
                program = export(Bare(step), given, dynamic_shapes=sizes, **NO_GUARDS)
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(package), inductor_configs=OPTIONS | dict(options)
            )
        except Exception as error:  # from the compiler or from torch
            reason = next((line for line in str(error).splitlines() if line.strip()), "no reason")
            raise SettingError(f"compiling failed ({reason.strip()})") from error
        take_library(package, path)


def take_library(package: Path, path: Path) -> None:
    """Write the shared library in torch's package to `path`: a package would be unpacked into a
    temporary directory at every load."""
    with zipfile.ZipFile(package) as archive:
        name = next(each for each in archive.namelist() if each.endswith(".so"))
        with archive.open(name) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)


def load_step(model: Llama, lineup: Lineup, path: Path) -> tuple[Runner, list[Tensor]]:
    """The machine code in `path`, and the tensors that it reads before all else: the model's own,
    which are joined in place, and the adapters' copies. Raises `SettingError` if it cannot be
    loaded.
    """
    weights = list(weights_of(Ahead(model, lineup)).values())
    try:
        runner: Runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(path.absolute()), 1)
    except (RuntimeError, AttributeError) as error:
        reason = (str(error).splitlines() or ["no reason"])[0]
        raise SettingError(f"{path}: cannot be loaded ({reason}); compile it again") from None
    return runner, weights


class Steps:
    """A model's steps, each with its lineup. They have no state, so several threads may call."""

    def __init__(self, model: Llama, found: Sequence[tuple[Lineup, tuple[Runner, list[Tensor]]]]):
        self.config = model.config
        self.runners = {tuple(map(id, lineup)): each for lineup, each in found}
        self.kept = tuple(lineup for lineup, _ in found)  # adapters, whose ids are keys
        self.rotary, self.dtype = model.rotary, model.dtype
        self.columns = torch.arange(model.config.max_positions)

    def code_for(self, step: Step) -> tuple[Runner, list[Tensor]] | None:
        """The machine code for this step, with its slots and adapters, and the weights that it
        reads; None if there is none."""
        place, cache = step.place, step.cache
        if (
            place.width != 1
            or not isinstance(cache, FastCache)
            or cache.stored != cache.dtype
            or not LEAST <= place.stop < cache.capacity  # a full cache has another layout
            or 0 in place.counts
            or torch.is_grad_enabled()
            or not only_adds(step, self.config.hidden)
        ):
            return None
        rows: list[LoraAdapter | None] = [None] * len(place.starts)
        for each in step.adapters:
            rows[each.rows] = [each.adapter] * len(rows[each.rows])
        return self.runners.get(tuple(map(id, rows)))

    def run(self, code: tuple[Runner, list[Tensor]], ids: Tensor, step: Step) -> Tensor:
        """Logits (B, vocab) of ids (B, 1); writes to the cache and applies the step's slots."""
        cache, place = step.cache, step.place
        assert isinstance(cache, FastCache)
        cos, sin = self.rotary.tables(place.stop, self.dtype, cache.device)
        runner, weights = code
        return runner.run([
            *weights,
            ids[:, 0].contiguous(), torch.tensor(place.starts), self.columns[: place.stop],
            cos, sin, added_by(step, self.config, len(ids)), *cache.layers(place.rows),
        ])[0]  # fmt: skip


class AheadLlama(FastLlama):
    """A model whose layers and head run as machine code whenever there is some for the step."""

    steps: Steps

    def run(self, ids: Tensor, step: Step, last_only: bool, no_logits: bool) -> Tensor:
        code = None if no_logits else self.steps.code_for(step)
        if code is None:
            return super().run(ids, step, last_only, no_logits)
        logits = self.steps.run(code, ids, step)
        return logits if last_only else logits.unsqueeze(1)

"""Count files of this package beside those of projects that do the same, part by part.

    python bench/side_by_side.py PEERS [--sources]

PEERS is a directory with the peers' files, each at PROJECT/PATH: `SOURCES` says from which
repository and commit (`--sources` prints it). They are other people's work and are not kept here.

Counted are functions and classes, and what stands in them; imports and constants beside them are
not. Where a file holds several parts, `PARTS` names the definitions that belong to one.

lines: with code on them, so no blank lines, comments or docstrings. functions: also methods and
inner ones. branches: if and elif, for, while, except, match cases, conditional expressions, and
each `and` or `or`; conditions inside of comprehensions are not.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = "minisafe"

GPT_FAST, NANOCHAT, NANO_VLLM, STEERING = "gpt-fast", "nanochat", "nano-vllm", "steering-vectors"
REPOSITORIES = {
    GPT_FAST: "pytorch-labs/gpt-fast",
    NANOCHAT: "karpathy/nanochat",
    NANO_VLLM: "GeeeekExplorer/nano-vllm",
    STEERING: "steering-vectors/steering-vectors",
}
SOURCES = {  # project, path in its repository: commit, or the release on PyPI
    (GPT_FAST, "model.py"): "870415262cf12f7144d93359317acb24629e6dfd",
    (GPT_FAST, "generate.py"): "a4bd2f89999fde73a0224a78b7c60c73475971ec",
    (NANOCHAT, "nanochat/gpt.py"): "e28d4ead22c6b9d1238042c81db12e1e5760c438",
    (NANOCHAT, "nanochat/engine.py"): "400f4449db06b37acf5f7b5d312c4f930a43a2ac",
    (NANOCHAT, "nanochat/checkpoint_manager.py"): "01f5f10122fc092acd170953bbb60869138175ba",
    (NANO_VLLM, "nanovllm/models/qwen3.py"): "76c0390163d79bebb96ed889d8a88f281e6c8149",
    (NANO_VLLM, "nanovllm/engine/llm_engine.py"): "718d89427db6a125733c1266de38567f521b30a6",
    (NANO_VLLM, "nanovllm/engine/scheduler.py"): "06005bd4602e0dc6e4c80e64c159658dbc468fae",
    (NANO_VLLM, "nanovllm/engine/block_manager.py"): "04ed632a637713de653ef94c99834079872dd22e",
    (NANO_VLLM, "nanovllm/layers/sampler.py"): "50c44232da364fa648b3e6781320f66179943e76",
    (NANO_VLLM, "nanovllm/utils/loader.py"): "2f352aea436c1d8c49a6c15f67b40bb32c0c2a8c",
    (STEERING, "steering_vectors/steering_vector.py"): "0.12.2 on PyPI",
    (STEERING, "steering_vectors/layer_matching.py"): "0.12.2 on PyPI",
}
# part: (project, file, the definitions that belong to the part; none: all)
PARTS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "model": (
        (OURS, "minisafe/model.py", ""),
        (OURS, "minisafe/step.py", ""),
        (OURS, "minisafe/rotary.py", ""),
        (OURS, "minisafe/linear.py", ""),
        (
            GPT_FAST,
            "model.py",
            "find_multiple ModelArgs Transformer TransformerBlock Attention FeedForward RMSNorm "
            "precompute_freqs_cis apply_rotary_emb",
        ),
        (
            NANOCHAT,
            "nanochat/gpt.py",
            "GPTConfig norm has_ve apply_rotary_emb CausalSelfAttention MLP Block GPT.__init__ "
            "GPT._precompute_rotary_embeddings GPT._compute_window_sizes GPT.get_device "
            "GPT.forward",
        ),
        (NANO_VLLM, "nanovllm/models/qwen3.py", ""),
    ),
    "loop": (
        (OURS, "minisafe/engine.py", ""),
        (OURS, "minisafe/lockstep.py", ""),
        (OURS, "minisafe/policy.py", ""),
        (GPT_FAST, "generate.py", "prefill decode_one_token decode_n_tokens generate"),
        (NANOCHAT, "nanochat/engine.py", "RowState Engine"),
        (NANO_VLLM, "nanovllm/engine/llm_engine.py", ""),
        (NANO_VLLM, "nanovllm/engine/scheduler.py", ""),
    ),
    "sampler": (
        (OURS, "minisafe/sampling.py", ""),
        (GPT_FAST, "generate.py", "multinomial_sample_one_no_sync logits_to_probs sample"),
        (NANOCHAT, "nanochat/engine.py", "sample_next_token"),
        (NANO_VLLM, "nanovllm/layers/sampler.py", ""),
    ),
    "cache": (
        (OURS, "minisafe/cache.py", ""),
        (OURS, "minisafe/cache_dtype.py", ""),
        (GPT_FAST, "model.py", "KVCache"),
        (NANOCHAT, "nanochat/engine.py", "KVCache"),
        (NANO_VLLM, "nanovllm/engine/block_manager.py", ""),
    ),
    "loader": (
        (
            OURS,
            "minisafe/checkpoint/__init__.py",
            "load_model as_dtype checked_tensors fitted check_tied move",
        ),
        (OURS, "minisafe/checkpoint/config.py", "Family load_config read_config _Reader"),
        (OURS, "minisafe/checkpoint/keys.py", ""),
        (OURS, "minisafe/checkpoint/rope.py", "read_rope read_llama3 read_yarn"),
        (OURS, "minisafe/checkpoint/plan.py", ""),
        (OURS, "minisafe/checkpoint/fused.py", ""),
        (OURS, "minisafe/checkpoint/files.py", ""),
        (OURS, "minisafe/checkpoint/header.py", ""),
        (GPT_FAST, "generate.py", "_load_model"),
        (
            NANOCHAT,
            "nanochat/checkpoint_manager.py",
            "load_checkpoint build_model find_largest_model find_last_step load_model_from_dir "
            "load_model",
        ),
        (NANO_VLLM, "nanovllm/utils/loader.py", ""),
    ),
    "steering": (
        (OURS, "minisafe/vectors.py", ""),
        (OURS, "minisafe/slots.py", ""),
        (STEERING, "steering_vectors/steering_vector.py", ""),
        (STEERING, "steering_vectors/layer_matching.py", ""),
    ),
}

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
BRANCHES = (
    ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp, ast.match_case,
)  # fmt: skip
NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENCODING, tokenize.ENDMARKER,
}  # fmt: skip


@dataclass(frozen=True)
class Count:
    """What a file, or some definitions of it, amount to."""

    lines: int = 0
    functions: int = 0
    branches: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(
            self.lines + other.lines,
            self.functions + other.functions,
            self.branches + other.branches,
        )


def count(source: str, names: Sequence[str] = ()) -> Count:
    """Count the definitions with these names (a method: `Class.method`), or all of them.

    Raises `KeyError` for a name that the source does not define.
    """
    found = dict(definitions(ast.parse(source)))
    wanted = names or [name for name in found if "." not in name]
    code = lines_with_code(source)
    total = Count()
    for node in (found[name] for name in wanted):
        within = range(first_line(node), (node.end_lineno or node.lineno) + 1)
        inside = list(ast.walk(node))
        functions = sum(isinstance(each, FUNCTIONS) for each in inside)
        total += Count(sum(line in code for line in within), functions, branches(inside))
    return total


def definitions(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """Functions and classes of a module, and their methods, by name."""
    for node in tree.body:
        if isinstance(node, DEFINITIONS):
            yield node.name, node
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, FUNCTIONS):
                    yield f"{node.name}.{inner.name}", inner


def first_line(node: ast.stmt) -> int:
    """Where it begins, with its decorators."""
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(each.lineno for each in decorators)])


def lines_with_code(source: str) -> set[int]:
    """Numbers of the lines that hold more than a comment or a docstring."""
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            found.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, *DEFINITIONS)) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            found -= set(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    return found


def branches(nodes: Sequence[ast.AST]) -> int:
    """How many ways part there."""
    chains = (len(each.values) - 1 for each in nodes if isinstance(each, ast.BoolOp))
    return sum(isinstance(each, BRANCHES) for each in nodes) + sum(chains)


def table(peers: Path) -> Iterator[str]:
    """The lines of the table, as Markdown; a project with several files has their sum last."""
    yield "| part | project | file | lines | functions | branches |"
    yield "|---|---|---|---|---|---|"
    for part, entries in PARTS.items():
        for project in dict.fromkeys(project for project, *_ in entries):
            own = [(path, names) for its, path, names in entries if its == project]
            counts = [count(read(peers, project, path), names.split()) for path, names in own]
            for (path, names), found in zip(own, counts, strict=True):
                yield row(part, project, f"`{path}`{', in part' if names else ''}", found)
            if len(own) > 1:
                yield row(part, project, "together", sum(counts, Count()))


def row(part: str, project: str, file: str, found: Count) -> str:
    numbers = f"{found.lines} | {found.functions} | {found.branches}"
    return f"| {part} | {project} | {file} | {numbers} |"


def read(peers: Path, project: str, path: str) -> str:
    """A file of this package, or of a peer."""
    place = ROOT if project == OURS else peers / project
    return (place / path).read_text(encoding="utf-8")


def sources() -> Iterator[str]:
    """Where each of the peers' files is from, as Markdown."""
    yield "| project | repository | path | commit |"
    yield "|---|---|---|---|"
    for (project, path), commit in SOURCES.items():
        yield f"| {project} | {REPOSITORIES[project]} | `{path}` | {commit} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Count this package's files beside the peers'.")
    parser.add_argument("peers", type=Path, nargs="?", help="directory of PROJECT/PATH files")
    parser.add_argument("--sources", action="store_true", help="say where the files are from")
    given = parser.parse_args(arguments)
    if given.sources:
        print("\n".join(sources()))
        return 0
    if given.peers is None:
        parser.error("give a directory, or --sources")
    missing = [
        f"{name}/{path}" for name, path in SOURCES if not (given.peers / name / path).exists()
    ]
    if missing:
        print(f"{given.peers} lacks {', '.join(missing)}; see --sources", file=sys.stderr)
        return 1
    print("\n".join(table(given.peers)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

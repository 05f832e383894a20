"""Write docs/api.md from the signatures and docstrings of the public API, `import minisafe`.

python docs/make_api.py            # writes the page
python docs/make_api.py --check    # fails if the page does not match the code
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import minisafe

PAGE = Path(__file__).resolve().parent / "api.md"
INTRO = """\
# The API of `import minisafe`

`python docs/make_api.py` makes this page from the code. The package is typed (`py.typed`).
Everything that is not on this page may change without notice. B: rows of a batch, T: tokens of a
row.

For text in, text out, use `load`, `Session`, `Chat`, `Result`, `Settings` and `MinisafeError`. The
other names are the parts, for programs that embed them.
"""
# of these classes, show only the members that callers use
PARTS = {
    "Generation": ("cancel", "__iter__"),
    "KVCache": ("__init__", "capacity", "n_bytes", "rows", "rewind", "keep"),
    "Llama": ("__init__", "dtype", "device", "new_cache", "forward", "tensors"),
}
WIDTH = 88
SECTION = re.compile(r"^(Args|Returns|Yields|Raises)(, [a-z ]+)?:$")
ITEM = re.compile(r"^([\w, ]+?): (.*)$", re.DOTALL)
SHOWN = ("__call__", "__iter__", "__enter__", "__exit__")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def tree(thing: Any) -> Any:
    """The syntax tree of a class or function."""
    return ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]


def signature(function: Function, name: str) -> str:
    """`name(arguments) -> result`; a long signature has one argument per line."""
    result = "" if function.returns is None else f" -> {ast.unparse(function.returns)}"
    given = [each for each in arguments(function.args) if each not in ("self", "cls")]
    line = f"{name}({', '.join(given)}){result}"
    if len(line) <= WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {each},\n" for each in given) + f"){result}"


def arguments(given: ast.arguments) -> Iterator[str]:
    """Each argument as in the source, with its type and default."""
    plain = [*given.posonlyargs, *given.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(given.defaults))
    for arg, default in zip(plain, [*defaults, *given.defaults], strict=True):
        yield ast.unparse(arg) + (f" = {ast.unparse(default)}" if default else "")
    if given.vararg:
        yield f"*{ast.unparse(given.vararg)}"
    elif given.kwonlyargs:
        yield "*"
    for arg, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        yield ast.unparse(arg) + (f" = {ast.unparse(default)}" if default else "")


def code(text: str) -> str:
    return f"```python\n{text}\n```\n"


def prose(doc: str | None) -> str:
    """A docstring as Markdown: sections become lists, indented blocks become code."""
    if not doc:
        return ""
    return "\n".join(map(block, inspect.cleandoc(doc).split("\n\n")))


def block(text: str) -> str:
    head, *rest = text.splitlines()
    found = SECTION.match(head)
    if found and rest:
        return f"{head.rstrip(':')}:\n\n" + "".join(map(item, items(rest)))
    if head.startswith("    "):
        return code(textwrap.dedent(text))
    return text + "\n"


def items(lines: list[str]) -> list[str]:
    """The entries of a section, each on one line."""
    found: list[str] = []
    for line in textwrap.dedent("\n".join(lines)).splitlines():
        if line.startswith(" ") and found:
            found[-1] += " " + line.strip()
        else:
            found.append(line)
    return found


def item(text: str) -> str:
    named = ITEM.match(text)
    return f"- `{named[1]}`: {named[2]}\n" if named else f"- {text}\n"


def function_text(function: Function, name: str) -> str:
    return code(f"def {signature(function, name)}") + "\n" + prose(ast.get_docstring(function))


def class_text(kind: type, name: str) -> Iterator[str]:
    """A class: its head with fields, its docstring, then its public members."""
    node = tree(kind)
    fields = [each for base in reversed(own_bases(kind)) for each in public_fields(tree(base))]
    decorators = [f"@{ast.unparse(each)}" for each in node.decorator_list]
    bases = f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else ""
    head = [*decorators, f"class {node.name}{bases}:", *fields]
    yield code("\n".join(head) if fields else f"{head[-1]} ...") + "\n"
    yield prose(ast.get_docstring(node))
    if issubclass(kind, BaseException):
        yield errors_table(kind)
    seen: set[str] = set()
    for base in own_bases(kind):
        for member in tree(base).body:
            if isinstance(member, Function) and member.name not in seen and is_shown(member, name):
                seen.add(member.name)
                yield member_text(member, name)


def own_bases(kind: type) -> list[type]:
    """The class and its bases, as far as minisafe defines them."""
    return [each for each in kind.__mro__ if each.__module__.startswith("minisafe.")]


def public_fields(node: ast.ClassDef) -> list[str]:
    return [
        f"    {ast.unparse(without_declaration(each))}"
        for each in node.body
        if isinstance(each, ast.AnnAssign) and not ast.unparse(each.target).startswith("_")
    ]


def without_declaration(node: ast.AnnAssign) -> ast.AnnAssign:
    """A field; for a declared setting, with its default alone."""
    if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "declared":
        node.value = node.value.args[0]
    return node


def is_shown(member: Function, owner: str) -> bool:
    if owner in PARTS:
        return member.name in PARTS[owner]
    if member.name == "__init__":
        return len(member.args.args) + len(member.args.kwonlyargs) > 1
    return not member.name.startswith("_") or member.name in SHOWN


def member_text(member: Function, owner: str) -> str:
    marks = {ast.unparse(each) for each in member.decorator_list}
    if marks & {"property", "cached_property"}:
        result = "" if member.returns is None else f": {ast.unparse(member.returns)}"
        return f"\n### `{owner}.{member.name}`\n\n" + code(f"{member.name}{result}  # property") + (
            "\n" + prose(ast.get_docstring(member))
        )  # fmt: skip
    title = owner if member.name == "__init__" else f"{owner}.{member.name}"
    return f"\n### `{title}()`\n\n" + function_text(member, member.name)


def errors_table(kind: type) -> str:
    """Every error of the same file that inherits from `kind`, in file order."""
    lines = ["", "| error | exit code | when |", "|---|---|---|"]
    waiting = list(kind.__subclasses__())
    while waiting:
        each = waiting.pop(0)
        if each.__module__ != kind.__module__:
            continue
        waiting = [*each.__subclasses__(), *waiting]
        when = " ".join((each.__doc__ or "").split())
        lines.append(f"| `{each.__name__}` | {getattr(each, 'exit_code', '')} | {when} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    parts = [INTRO]
    for name in minisafe.__all__:
        thing = getattr(minisafe, name)
        is_class = inspect.isclass(thing)
        text = "".join(class_text(thing, name)) if is_class else function_text(tree(thing), name)
        parts.append(f"\n## `{name}`\n\nFrom `{thing.__module__}`.\n\n{text}")
    text = "".join(parts)
    return re.sub(r"\n{3,}", "\n\n", text)


def main(arguments: list[str]) -> int:
    made = page()
    if "--check" not in arguments:
        PAGE.write_text(made, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == made:
        return 0
    print("docs/api.md does not match the code; run `python docs/make_api.py`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

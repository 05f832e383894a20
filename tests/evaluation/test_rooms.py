"""The rooms of evaluation/ import one way: from a later floor to an earlier one."""

from __future__ import annotations

import ast
from pathlib import Path

import minisafe.evaluation

HOUSE = Path(minisafe.evaluation.__file__).parent
FLOORS = (
    {"journal", "statistics", "prompts", "world"},
    {"records"},
    {"judges", "likelihood"},
    {"defences"},
    {"methods"},
    {"attacks"},
    {"fitting"},
    {"runner"},
    {"report"},
    {"stored"},
    {"exported"},
    {"evaluate", "harness"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The rooms that a file imports from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minisafe.eval"):
            found |= {*(f"{node.module}.{each.name}".split(".")[2] for each in node.names)}
    return found


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(path) for path in HOUSE.rglob("*.py")} - {"__init__"}
    assert rooms == set(FLOOR_OF)


def test_rooms_import_from_earlier_floors_only() -> None:
    for path in HOUSE.rglob("*.py"):
        here = room_of(path)
        if here != "__init__":
            for there in imported(path) - {here}:
                assert FLOOR_OF[there] < FLOOR_OF[here], f"{path} imports {there}"

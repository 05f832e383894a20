"""Edited models: facts stored in a model's own weights by rank-one changes (ROME)."""

from __future__ import annotations

from minisafe.editing.editor import Editor, edit
from minisafe.editing.facts import Edit, Edited, Editing

__all__ = ["Edit", "Edited", "Editing", "Editor", "edit"]

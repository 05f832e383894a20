"""Words that wrap at the terminal's width while they stream."""

from __future__ import annotations

import unicodedata

TAB = 8


def columns(character: str) -> int:
    """The columns of a character on a terminal: 2 for wide ones, 0 for combining marks."""
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


class Wrap:
    """Takes text in pieces and returns it with a newline in place of the blank before each word
    that would not fit on its line.

    A word is held back until it is complete. The terminal itself breaks words that are longer than
    a line, and wide characters, which do not form words.

    width: the terminal's columns; None: nothing is wrapped or held back.
    """

    def __init__(self, width: int | None):
        self.width = None if width is None else max(1, width)
        self.column = 0  # of the next character
        self.blanks = self.word = ""  # not shown yet
        self.word_columns = 0

    def push(self, text: str) -> str:
        """The text that can be shown now."""
        return text if self.width is None else "".join(map(self._take, text))

    def finish(self) -> str:
        """The text that was held back."""
        return "" if self.width is None else self._flush()

    def _take(self, character: str) -> str:
        if character == "\n":
            shown = self._flush() + "\n"
            self.column = 0
            return shown
        if character in " \t":
            shown = self._flush() if self.word else ""
            self.blanks += character
            return shown
        if columns(character) == 2:
            self._hold(character)
            return self._flush()
        self._hold(character)
        assert self.width is not None
        return self._flush() if self.word_columns > self.width else ""

    def _hold(self, character: str) -> None:
        self.word += character
        self.word_columns += columns(character)

    def _flush(self) -> str:
        """The blanks and the word, on this line or the next."""
        assert self.width is not None
        blanks, word, wide = self.blanks, self.word, self.word_columns
        end = self._after(blanks)
        if blanks and word and end + wide > self.width:
            blanks = "\n" + blanks[1:]
            self.column = 0
            end = self._after(blanks[1:])
        self.column = end
        for character in word:
            self._advance(columns(character))
        self.blanks, self.word, self.word_columns = "", "", 0
        return blanks + word

    def _after(self, blanks: str) -> int:
        """The column after these blanks."""
        column = self.column
        for blank in blanks:
            column = (column // TAB + 1) * TAB if blank == "\t" else column + 1
        return column

    def _advance(self, wide: int) -> None:
        """Move by a character, onto the next line if the terminal breaks this one."""
        assert self.width is not None
        self.column = self.column + wide if self.column + wide <= self.width else wide

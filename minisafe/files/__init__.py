"""Untrusted files are checked when read; files are written whole or not at all."""

from minisafe.files.untrusted import (
    MAX_DEPTH,
    MAX_JSON_BYTES,
    MAX_VALUES,
    json_lines,
    parse_json,
    read_bytes,
    read_json,
    read_text,
)
from minisafe.files.whole import whole_directory, whole_file, write_bytes, write_text

__all__ = [
    "MAX_DEPTH",
    "MAX_JSON_BYTES",
    "MAX_VALUES",
    "json_lines",
    "parse_json",
    "read_bytes",
    "read_json",
    "read_text",
    "whole_directory",
    "whole_file",
    "write_bytes",
    "write_text",
]

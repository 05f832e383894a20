"""Prompt styles, judges and reports."""

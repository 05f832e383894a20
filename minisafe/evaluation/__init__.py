"""Measures safety against utility: prompts, methods, judges, runs and reports."""

"""Turns answers and rulings into numbers, and numbers into pages."""

"""Safety against utility, measured: prompts, methods, judges, runs and reports."""

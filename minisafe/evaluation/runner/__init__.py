"""The run: who answers what, on which machine, and what is answered already."""

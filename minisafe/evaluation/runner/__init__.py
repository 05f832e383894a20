"""The run: the plan, the processes, and the answers so far."""

"""The meta-training loop and what it needs: outer step, validation, schedule, state, interruption."""

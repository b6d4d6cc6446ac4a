"""The parts of scripts/bench.py and scripts/scaling.py."""

"""Meta-learning algorithms, one paper a file, each written for a single task."""

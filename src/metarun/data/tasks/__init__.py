"""From the number of a task to its episode."""

"""Ways to execute an algorithm on many tasks; all give the same numbers."""

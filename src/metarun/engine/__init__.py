"""Ways to execute an algorithm on many tasks; they agree in every number."""

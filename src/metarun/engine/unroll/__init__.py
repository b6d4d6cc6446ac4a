"""Ways to execute an inner loop; all give the same numbers and derivatives."""

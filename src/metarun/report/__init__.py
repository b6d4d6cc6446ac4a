"""A run's numbers as pictures and tables for people."""

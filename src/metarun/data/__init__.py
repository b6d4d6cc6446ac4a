"""Data sets: fetched, read, packed into a store, and drawn from as tasks."""

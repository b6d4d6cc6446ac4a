"""Torch operations whose derivatives, of any order, are again these operations."""

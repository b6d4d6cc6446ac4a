"""Networks, and the way from a torch module to pure functions."""

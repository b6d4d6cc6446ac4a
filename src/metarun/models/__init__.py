"""Networks, and a torch module as pure functions of its weights."""

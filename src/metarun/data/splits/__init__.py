"""Which class belongs to which split: the published lists, and a user's own."""

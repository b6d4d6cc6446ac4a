"""The exception of a contender that cannot run here."""


class Unavailable(Exception):
    """The message is the reason; the table of results shows it."""

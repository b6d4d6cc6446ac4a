"""What a contender raises that cannot take part."""


class Absent(Exception):
    """Its text is the reason, which the table shows."""

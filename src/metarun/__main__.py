"""`python -m metarun`."""

from metarun.cli.main import console

if __name__ == "__main__":
    console()

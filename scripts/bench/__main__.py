"""`python -m bench` and `make bench`: runs the command line."""

import sys

from bench.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Times meta-steps of metarun and of other meta-learning libraries on this machine: `make bench`."""

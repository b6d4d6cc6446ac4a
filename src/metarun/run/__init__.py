"""One run: open its directory, build its parts, decide how to execute it, train, test, summarise."""

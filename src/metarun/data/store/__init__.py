"""All items of a data set in one file, which later runs map into memory."""

"""Readers of file formats: images, tables, zip and tar archives, pickles, class folders."""

"""Downloads: which files a data set consists of, and how to get them."""

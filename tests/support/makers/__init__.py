"""Small data sets in the formats in which the published ones are in circulation."""

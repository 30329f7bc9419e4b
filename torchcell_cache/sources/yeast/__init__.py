"""The yeast cell of a folder of raw files."""

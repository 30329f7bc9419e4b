"""Stores that grow: samples appended, labels or the base graph changed, and only what can differ made again."""

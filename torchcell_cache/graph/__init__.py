"""The base graph on disk: its fields, values and files, written once and compared part by part."""

"""Which samples come in which order."""

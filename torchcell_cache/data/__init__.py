"""What users hold: datasets, loaders, samplers, splits."""

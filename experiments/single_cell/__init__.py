"""A cell-type classifier on the 700 real cells that scanpy carries."""

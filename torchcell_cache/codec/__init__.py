"""Bytes of one record: no LMDB, no PyG, no torch, nothing that executes."""

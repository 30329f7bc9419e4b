"""Stores in object storage: pushing, pulling, and reading through a local cache. See ``docs/object_storage.md``.

fsspec is imported in :mod:`.bucket` only, when the first address is used.
"""

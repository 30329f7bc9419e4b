"""What everything stands on: files, locks, digests, checks."""

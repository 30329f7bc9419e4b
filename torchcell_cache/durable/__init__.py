"""What survives a crash: atomic publication, locks, process identity, sealed JSON."""

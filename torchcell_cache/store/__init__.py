"""A published store: manifest, records, columns, leases."""

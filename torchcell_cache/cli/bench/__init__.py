"""What a store costs to read, and what it saves."""

"""What a store costs on this machine, stage by stage, and what to do about it."""

"""Settings of the command line, one file per command, one per source and processor; the comments are the help."""

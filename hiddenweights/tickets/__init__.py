"""Found subnetworks as files: the format, and what can be done with such a file."""

"""One dataset format a file, reading and writing together."""

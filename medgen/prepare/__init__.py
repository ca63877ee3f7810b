"""From scans as they come to arrays a network can train on, with the way back recorded."""

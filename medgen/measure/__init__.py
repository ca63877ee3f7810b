"""Pure figures over arrays."""

"""Reports over measured figures."""

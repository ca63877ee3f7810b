"""One diffusion process a file."""

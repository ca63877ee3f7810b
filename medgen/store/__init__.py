"""Prepared volumes and latents on disk, and the sampler that crops patches on the device."""

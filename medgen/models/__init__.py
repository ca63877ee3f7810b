"""Codecs, denoiser networks, embeddings, and the types that connect them."""

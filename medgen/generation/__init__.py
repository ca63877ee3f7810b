"""From a model folder to samples and synthetic datasets."""

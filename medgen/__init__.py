"""medgen: from a cohort of 3D medical images to a vetted synthetic dataset."""

__version__ = "0.1.0"

"""Adversarial Distributional Training as a reproducible pipeline.

Importing this package, or any module of it, only defines names.
"""

__version__ = "0.1.0"

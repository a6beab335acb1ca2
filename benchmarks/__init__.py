"""Measurements against the authors' released code, which a user clones and names: none of it is in this repository."""

"""Cells on the nodes of a Ray cluster; the results meet in a DVC remote. Alone here Ray is imported, when asked for."""

"""Figures, one module a subject; the only importers of matplotlib. Equal input gives equal bytes."""

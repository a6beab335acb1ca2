"""The report: one self-contained page with every table and figure, each number linked to the run that made it."""

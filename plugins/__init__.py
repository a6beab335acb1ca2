"""Your own code, named in params.yaml by import path."""

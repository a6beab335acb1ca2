"""DVC stages: each reads params.yaml, calls the library and writes plain files."""

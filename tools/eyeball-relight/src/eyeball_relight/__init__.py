"""A relightable face with eyeballs from a co-located flash capture."""

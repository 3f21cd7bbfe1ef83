"""2-D and 3-D features of face sequences, and a model that names their emotions."""

"""An encoder from a photograph to one vector: `training.start` makes one, `photographs.encode` uses it."""

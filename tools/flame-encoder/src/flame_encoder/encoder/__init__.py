"""An encoder from a photograph to one vector: `training.start` makes one, `people.photographs.encode` uses it."""

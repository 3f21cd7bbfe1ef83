"""A tracker from a video to parameters in every frame: `clip.track` of all of it, `stream.track` while it arrives."""

"""Who pictures show: the encoder refined by the tracker's solver (`photographs.encode`), `comparing.compare`."""

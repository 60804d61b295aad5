"""Who acts: everything async, every socket, all wiring."""

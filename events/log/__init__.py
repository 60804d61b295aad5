"""Where events are written down: one Protocol, three kinds."""

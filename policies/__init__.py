"""How it is decided: pure functions over events. The heart of the house."""

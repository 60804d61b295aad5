"""services/engines."""

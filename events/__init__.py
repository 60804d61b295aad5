"""The words of Tidegate, and where they are written down."""

"""Models in use outside of torch."""

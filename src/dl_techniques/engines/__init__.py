"""Models of any kind as functions from array to array."""

"""Files to arrays, arrays to batches, and the images that ship with the package."""

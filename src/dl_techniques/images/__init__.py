"""Image files: one registry of formats, arrays to files and back."""

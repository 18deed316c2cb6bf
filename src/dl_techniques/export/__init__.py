"""Models as artifacts for other runtimes."""

"""Models applied to images of any size, and what can be said of the result without the truth."""

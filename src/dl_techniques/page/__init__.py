"""A local web page: drop an image, see what a model makes of it, download the result."""

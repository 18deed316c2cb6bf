"""Prediction over millions of images: many processes on one machine or on many, through Ray Data."""

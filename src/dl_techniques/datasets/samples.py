"""The images that ship with the package: 24 fluorescence images of cell nuclei with instance masks, CC0."""

from pathlib import Path

NUCLEI = Path(__file__).parent / "nuclei"  # image/ and label/, see README.txt

"""Data sets: labeled images, found, decoded, checked, split and reported."""

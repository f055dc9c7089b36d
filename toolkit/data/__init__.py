"""Data: labelled images, found, checked, divided and drawn."""

"""The model over HTTP, and the web page."""

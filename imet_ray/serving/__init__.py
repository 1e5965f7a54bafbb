"""Tagging over HTTP: what a request may hold, what it is answered, and the page. What predicts is given."""

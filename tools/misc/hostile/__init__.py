"""Hostile and broken inputs: what they are, and what becomes of them."""

"""Recipes: whole jobs made of the parts: an audit, the demo."""

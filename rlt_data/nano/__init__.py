"""The miniature models, as package data: one folder each, made by recipes/nano."""

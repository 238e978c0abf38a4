"""The steps of the pipeline, one module each. A step reads earlier tables and adds one; it never changes its input."""

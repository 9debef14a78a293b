"""REST under ``/api/v1``: one module per noun, each a thin shell around the functions that pages call too."""

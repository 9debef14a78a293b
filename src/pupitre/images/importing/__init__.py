"""Import of images: checks, formats of other products, conversion."""

"""A `Report` as text, markdown or JSON."""

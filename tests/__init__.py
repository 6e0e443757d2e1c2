"""All tests; a package, so that what they share is imported by its whole name."""

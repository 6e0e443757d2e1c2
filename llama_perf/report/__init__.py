"""Results drawn as text, markdown, JSON and CSV."""

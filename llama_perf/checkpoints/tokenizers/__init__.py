"""Text to token ids and back; imports no torch."""

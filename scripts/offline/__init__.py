"""What carries the suite to a GPU machine without network, and what runs there."""

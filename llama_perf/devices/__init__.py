"""What a device is: whether it is present, its memory, its key, its driver.

Knows no row, no model and no result.
"""

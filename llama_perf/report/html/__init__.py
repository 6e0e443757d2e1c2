"""Documents as one HTML file each, that opens from disk without a network.

`page.py` makes the page of any document: style, charts, tables that sort. The optional
packages that it needs are imported only when a page is drawn.
"""

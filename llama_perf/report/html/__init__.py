"""Documents as one HTML file each, that opens from disk without a network.

`page.py` makes the page of any document: style, charts, tables that sort. `run.py` is
the page of a run. The optional packages that they need are imported only when a page is
drawn.
"""

from llama_perf.report import report_format
from llama_perf.report.columns import ALL, Layout
from llama_perf.results.run import Report

NEEDS = ("altair", "vl_convert")
"""The packages of the extra "html", without which no page is drawn."""


@report_format("html", ".html", has_columns=True, needs=NEEDS)
def as_html(report: Report, layout: Layout = ALL) -> str:
    """The report as a page, with charts."""
    from llama_perf.report.html.run import run_page

    return run_page(report, layout)

"""The charts of all rows of a run, and why some of them are not there."""

from llama_perf.report.html.change_chart import changes
from llama_perf.report.html.closeness_charts import NO_CLOSENESS, closeness
from llama_perf.report.html.measured_rows import measured
from llama_perf.report.html.page import Chart
from llama_perf.report.html.roofline_chart import roofline
from llama_perf.results.run import Report


def overview_charts(report: Report) -> tuple[list[Chart], list[str]]:
    """The charts that this run has figures for, and a sentence for each other one."""
    if not measured(report):
        return [], ["There is no chart: no row was measured."]
    by_closeness, by_change = closeness(report), changes(report)
    missing = []
    if not by_closeness:
        missing.append(NO_CLOSENESS)
    if by_change is None:
        missing.append(
            "There is no chart of changes: no row was compared with another run's."
        )
    charts = [roofline(report), *by_closeness, by_change]
    return [chart for chart in charts if chart is not None], missing

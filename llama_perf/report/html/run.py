"""The page of a run: verdicts, rows, charts, environment, notes."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from markupsafe import Markup

from llama_perf.report.columns import ALL, Layout
from llama_perf.report.html.overview_charts import overview_charts
from llama_perf.report.html.page import Section, page, render
from llama_perf.report.html.rows import Row, rows_of, rows_section
from llama_perf.report.notes import again, notes, reasons, summary
from llama_perf.report.table import TITLE, chosen_in, published_table
from llama_perf.results.run import Environment, Report
from llama_perf.words import counted


def run_page(report: Report, layout: Layout = ALL) -> str:
    """The report of a run as one HTML file."""
    rows, common = rows_of(report)
    sections = [
        _verdicts(report, rows),
        rows_section(report, rows, common, layout),
        _charts(report),
        *_other_tables(report),
        _environment(report),
    ]
    device = report.environment.device_name
    started = report.started[:16].replace("T", " ")
    title = f"{device}, {counted(len(rows), 'row')}, {started}"
    return page(title, sections, note=report.note)


def _verdicts(report: Report, rows: list[Row]) -> Section:
    """What failed, what got better, and what else a reader has to know."""
    said = {row_id for row_id, *_ in reasons(report)}
    failed = [row for row in rows if row.failed]
    better = [row for row in rows if row.kind == "good"]
    others = [row for row in rows if row.id in said and row not in failed + better]
    ranked = sorted(rows, key=lambda row: row.rank)
    html = render(
        "verdicts.html.j2",
        summary=summary(report),
        counts=Counter((row.verdict, row.kind) for row in ranked),
        failed=sorted(failed, key=lambda row: row.rank),
        better=sorted(better, key=lambda row: row.rank),
        others=sorted(others, key=lambda row: row.rank),
        overall=report.overall,
        again={row.id: again(report, row.id) for row in failed},
    )
    return Section(title="Verdicts", html=html)


def _charts(report: Report) -> Section:
    """The charts of all rows, and why others are not there."""
    charts, missing = overview_charts(report)
    html = Markup().join(Markup("<p>{}</p>").format(line) for line in missing)
    return Section(title="Charts", html=html, charts=charts)


def _other_tables(report: Report) -> Iterator[Section]:
    # tabulate escapes what it writes as "html".
    published = published_table(report, style="html")
    if published is not None:
        html = _table(TITLE, published, folded=False)
        yield Section(title="Published rows", html=html)
    if tables := chosen_in(report, style="html"):
        html = Markup().join(_table(*table, folded=True) for table in tables)
        yield Section(title="What autoquant chose", html=html)


def _table(title: str, table: str, *, folded: bool) -> Markup:
    return render("table.html.j2", title=title, table=Markup(table), folded=folded)


def _environment(report: Report) -> Section:
    facts = [
        (name.replace("_", " "), value)
        for name in Environment.__dataclass_fields__
        if (value := getattr(report.environment, name)) is not None
    ]
    # These two are shown elsewhere.
    rest = replace(report, note=None, environment_changes=())
    html = render(
        "environment.html.j2",
        facts=[("started", report.started), *facts],
        changes=report.environment_changes,
        notes=list(notes(rest)),
    )
    return Section(title="Environment and notes", html=html)

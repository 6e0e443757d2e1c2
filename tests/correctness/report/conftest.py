from pathlib import Path

import pytest

from llama_perf import report
from llama_perf.report.html.page import Chart, Section, page
from tests.correctness.support.page_samples import ROWS, many_rows


@pytest.fixture(scope="session")
def run_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "run.html"
    report.write(many_rows(ROWS, note="Made up."), path)
    return path


@pytest.fixture(scope="session")
def chart_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of charts, of which only the first ones are in view."""
    spec = {
        "data": {"values": [{"row": name, "x": len(name)} for name in ("a", "bb")]},
        "params": [{"name": "visible", "value": None}],
        "transform": [{"filter": "!visible || indexof(visible, datum.row) >= 0"}],
        "mark": "bar",
        "encoding": {
            "y": {"field": "row", "type": "nominal"},
            "x": {"field": "x", "type": "quantitative"},
        },
        "height": 600,
    }
    charts = [
        Chart(name=f"c{number}", title=f"Chart {number}", text="It shows.", spec=spec)
        for number in range(8)
    ]
    path = tmp_path_factory.mktemp("page") / "charts.html"
    html = page("Charts", [Section(title="Charts", charts=charts)])
    path.write_text(html, encoding="utf-8")
    return path

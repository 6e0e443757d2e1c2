"""What `--junitxml` says of each row, whether it was measured, failed or skipped."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from llama_perf.gate.verdict import not_compared
from llama_perf.pytest_plugin.junit import junit_properties
from llama_perf.results.measurement import SystemLoad
from llama_perf.results.run import Verdict
from tests.correctness.support.plugin_project import FP6, INT8, PLAIN, Project
from tests.correctness.support.record_samples import close, measured

pytest_plugins = ["pytester"]
FIGURES = ("tok_s", "sample_spread", "decode_tok_s", "peak_memory_bytes")


def properties(path: Path) -> dict[str, dict[str, str]]:
    """The properties of each test, by the id of its row."""
    found = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        values = {
            one.attrib["name"]: one.attrib["value"] for one in case.iter("property")
        }
        assert str(case.get("name")) == f"test_row[{values['row']}]"
        found[values["row"]] = values
    return found


@pytest.mark.parametrize("family", ["xunit1", "xunit2"])
def test_each_row_has_its_figures_verdict_and_reason(
    project: Project, family: str
) -> None:
    project.edit("[[row]]", '[[row]]\nname = "plain"')
    # No machine is as fast as this baseline.
    project.record(tok_s=1e12)
    junit = project.path / "junit.xml"
    options = (f"--junitxml={junit}", f"-ojunit_family={family}")
    project.run("--benchmark-compare", *options, failed=2, skipped=1)
    found = properties(junit)
    assert list(found) == [PLAIN, INT8, FP6]
    report = project.report()
    for result, comparison in report.judged:
        values = found[result.id]
        assert comparison is not None
        assert values["verdict"] == comparison.verdict.value
        assert values["reason"] == comparison.reason
        if result.measurement is None:
            assert not {*FIGURES} & values.keys()
            continue
        for name in FIGURES:
            assert float(values[name]) == getattr(result.measurement, name)
    verdicts = [Verdict.SLOWER, Verdict.SLOWER, Verdict.NOT_RUN]
    assert [project.verdicts()[row] for row in found] == verdicts
    assert found[PLAIN]["name"] == "plain"
    assert "name" not in found[INT8]


def test_a_row_that_breaks_has_its_reason(project: Project) -> None:
    junit = project.path / "junit.xml"
    (project.path / "checkpoints" / "tiny" / "config.json").write_text("{}")
    project.run(f"--junitxml={junit}", failed=2, skipped=1)
    broken = properties(junit)
    assert [values["verdict"] for values in broken.values()] == [
        *("INVALID", "INVALID", "NOT_RUN")
    ]
    assert all(values["reason"] for values in broken.values())


def test_a_row_that_passes_has_no_reason(project: Project) -> None:
    junit = project.path / "junit.xml"
    project.run(f"--junitxml={junit}", "--row", PLAIN, passed=1)
    (values,) = properties(junit).values()
    assert set(values) - {"disturbed"} == {"row", "verdict", *FIGURES}
    assert values["verdict"] == "NOT_COMPARED"


def test_a_disturbed_row_says_so() -> None:
    load = SystemLoad(seconds=1.0, cores=2, threads=2, other_cores=0.9)
    for result in (measured(), measured(load=load)):
        found = dict(junit_properties(result, not_compared(result)))
        assert ("disturbed" in found) is (result == measured(load=load))
    assert found["disturbed"] == "other processes took 0.9 of 2 cores"


def test_a_measured_closeness_is_a_property() -> None:
    for result, db in ((measured(), None), (close(), 12.0)):
        found = dict(junit_properties(result, not_compared(result)))
        assert found.get("text_closeness_db") == db

"""`--columns` under pytest, beside pytest-benchmark's own option of a like name."""

from llama_perf.report.columns import NAMES, in_files
from llama_perf.report.text import as_markdown, as_text
from tests.correctness.support.plugin_project import PLAIN, Project

pytest_plugins = ["pytester"]


def test_the_table_and_the_files_have_the_columns_that_are_named(
    project: Project,
) -> None:
    names = "verdict,tok/s"
    options = (f"--columns={names}", "--benchmark-columns=min,rounds", "--report=a.md")
    result = project.run(*options, "--row", PLAIN, passed=1)
    result.stdout.fnmatch_lines(["Name (time in *s) *Min *Rounds*"])
    layout, report = in_files(names), project.report()
    assert as_text(report, layout) in result.stdout.str()
    markdown = (project.path / "a.md").read_text(encoding="utf-8")
    assert markdown == as_markdown(report, layout)


def test_a_wrong_name_is_refused_before_anything_runs(project: Project) -> None:
    message = project.refusal("--columns=speed")
    assert "columns: 'speed' is not allowed; allowed: all, narrow" in message
    assert NAMES[-1] in message
    assert not project.results.exists()

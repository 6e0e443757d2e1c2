"""A torchao config as a row's scheme: its one form, its id, and what is refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llama_perf.errors import RecordError, SpecError
from llama_perf.report.table import row_names
from llama_perf.results.run import Verdict
from llama_perf.rows import selection
from llama_perf.rows.schemes import Scheme
from llama_perf.rows.spec import RowSpec
from llama_perf.run.worker_protocol import WorkerTask
from llama_perf.strict_json import from_json, to_line
from tests.correctness.support.errors import refusal
from tests.correctness.support.record_samples import baseline_of, compare, measured

TEXT = "torchao:Int8WeightOnlyConfig(granularity=PerGroup(32), version=2)"
ROW = RowSpec(model="tiny", quantization=TEXT, dtype="float32", device="cpu")


@pytest.mark.parametrize(
    "text",
    [
        "torchao:Int8WeightOnlyConfig(version=2,granularity=PerGroup(32))",
        "torchao: Int8WeightOnlyConfig( granularity = PerGroup( 0x20 ), version=2, )",
    ],
)
def test_spaces_and_the_order_of_arguments_make_no_other_row(text: str) -> None:
    row = replace(ROW, quantization=text)
    assert (row, row.id, row.fingerprint) == (ROW, ROW.id, ROW.fingerprint)
    assert row.quantization == TEXT


def test_other_values_make_another_row() -> None:
    others = [
        TEXT.replace("32", "64"),
        TEXT.replace("PerGroup(32)", "[PerGroup(32)]"),
        TEXT.replace("torchao:", "torchao.quantization:"),
        TEXT.replace("torchao:", "my_package:"),
    ]
    rows = [
        ROW,
        *(replace(ROW, quantization=text, kernels="native") for text in others),
    ]
    assert len({row.id for row in rows}) == len(rows)
    assert len({row.fingerprint for row in rows}) == len(rows)
    assert [row.kernels for row in rows] == ["torchao"] * 4 + ["own"]
    # A stored row is found by it: it must stay as it is.
    assert ROW.id == (
        "tiny.int8weightonly-granularity-pergr-9236d6.torchao.fp32.cpu.eager"
    )


def test_values_that_a_config_needs_are_plain() -> None:
    text = (
        "a_b.c:Config(a=-1.5, b='x', c=None, d=True, e=[1, (2,)], f={'g': torch.int4},"
        " h=KernelPreference.TORCH, i=Outer(Inner(1), k=2, l=3))"
    )
    parsed = Scheme.parse(text)
    assert parsed.name == text
    assert parsed.config is not None
    assert parsed.config.package == "a_b"
    assert dict(parsed.config.arguments)["i"] == "Outer(Inner(1), k=2, l=3)"


FORM = "write package.module:Config(argument=value)"
PLAIN = "is no plain value; allowed: numbers, text, True, False, None, lists"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "torchao:Int8WeightOnlyConfig",
            "write its call: torchao:Int8WeightOnlyConfig()",
        ),
        ("torchao:X(32)", "32 lacks its argument's name, as in package.module:Config"),
        ("torchao:X(a=1, a=2)", "the argument a is given twice"),
        ("torchao:X(a=Y(b=1, b=2))", "the argument b is given twice"),
        ("torchao:X(a", f"{FORM}: '(' was never closed"),
        ("int8wo:", f"{FORM}: invalid syntax"),
        (":X()", f"{FORM}, at most 400 characters"),
        ("my-package:X()", f"{FORM}, at most 400 characters"),
        ("_private:X()", f"{FORM}, at most 400 characters"),
        ("torchao:X().y()", FORM),
        ("torchao:X(a=1) + 2", FORM),
        (f"torchao:X(a='{'x' * 400}')", f"{FORM}, at most 400 characters"),
        (f"torchao:{'(' * 300}", FORM),
        ("torchao:_X()", f"_X() {PLAIN}"),
        ("torchao:X(a=1 + 2)", f"1 + 2 {PLAIN}"),
        ("torchao:X(a=__import__('os').system('ls'))", "is no plain value"),
        ("torchao:X(a=torch.__class__)", f"torch.__class__ {PLAIN}"),
        ("torchao:X(a=f'{b}')", PLAIN),
        ("torchao:X(a=lambda: 1)", f"lambda: 1 {PLAIN}"),
        ("torchao:X(a=[b for b in c])", PLAIN),
        ("torchao:X(**{'a': 1})", PLAIN),
        ("torchao:X(a=PerRow)", f"PerRow {PLAIN}"),
        ("torchao:X(a={1, 2})", PLAIN),
        ("torchao:X(a=...)", f"... {PLAIN}"),
        ("torchao:X(a=b'x')", PLAIN),
    ],
)
def test_what_is_no_call_of_plain_values_is_refused(text: str, reason: str) -> None:
    message = refusal(Scheme.parse, text, error=SpecError)
    assert message.startswith("quantization: ")
    assert " is not allowed; " in message
    assert reason in message


def test_its_kernels_are_set_and_no_others_allowed() -> None:
    with pytest.raises(SpecError, match="kernels: 'own' is not allowed; leave it out:"):
        replace(ROW, kernels="own")
    with pytest.raises(SpecError, match="fused: true is not allowed; it needs kernels"):
        replace(ROW, fused=True)


ROWS = f"""
[defaults]
model = "tiny"
device = "cpu"
[[row]]
name = "int8-g32"
quantization = "{TEXT}"
[[row]]
name = "int8-g32"
quantization = "{TEXT.replace(" ", "")}"
compile = true
[[row]]
name = "first"
quantization = "int8wo"
"""


def test_its_name_is_the_schemes_and_eager_and_compiled_rows_share_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "rows.toml"
    path.write_text(ROWS, encoding="utf-8")
    eager, compiled, builtin = selection.load_file(path)
    assert eager.id == "tiny.int8-g32.torchao.bf16.cpu.eager"
    assert compiled.id == "tiny.int8-g32.torchao.bf16.cpu.compile"
    assert builtin.id == "tiny.int8wo.bf16.cpu.eager"
    assert selection.select([eager, compiled, builtin], ["int8-g32"]) == [
        *(eager, compiled)
    ]
    assert row_names([eager, compiled])[0] == ["eager", "compile"]
    names, _ = row_names([eager, compiled, builtin])
    assert names == ["int8-g32.torchao.eager", "int8-g32.torchao.compile", "first"]
    for text, words in (
        (ROWS.replace("version=2)", "version=1)", 1), "rows 1 and 2 have one name"),
        (ROWS.replace('"first"', '"int8-g32"'), "rows 1 and 3 have one name"),
        (ROWS.replace("compile = true", ""), "rows 1 and 2 have one id"),
        (ROWS.replace('"int8-g32"', '"fp6"'), "row 1: name: 'fp6' is not allowed; it"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(RecordError) as caught:
            selection.load_file(path)
        assert str(caught.value).startswith(f"{path}: {words}")


def test_a_worker_is_told_the_name_that_is_in_the_id() -> None:
    row = replace(ROW, name="int8-g32")
    task = WorkerTask(row=row, devices=("cpu",))
    received = from_json(WorkerTask, to_line(task.to_send), source="the task")
    assert received.row.id == row.id
    sent = json.loads(to_line(WorkerTask(row=ROW, devices=("cpu",)).to_send))
    assert not sent["row"].keys() & {"name", "modules"}


def test_another_config_under_the_same_name_is_not_compared() -> None:
    row = replace(ROW, name="int8-g32")
    stored = baseline_of(measured(row))
    assert compare(measured(row), stored).verdict is Verdict.SAME
    other = replace(row, quantization=TEXT.replace("32", "64"))
    assert other.id == row.id
    assert compare(measured(other), stored).verdict is Verdict.INCOMPARABLE


def test_to_parse_a_row_imports_nothing_that_it_names() -> None:
    code = (
        "import sys; from llama_perf.rows.spec import RowSpec\n"
        "for text in ('this:X()', f'torchao:X(a=torch.int4)'):\n"
        "    RowSpec(model='tiny', quantization=text)\n"
        "print(sorted({'this', 'torch', 'torchao'} & sys.modules.keys()))"
    )
    out = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert out == "[]\n"

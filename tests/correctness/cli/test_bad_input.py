"""Mistakes on the command line: one line that names them, exit code 2, nothing run."""

from pathlib import Path

import pytest
import torch

from llama_perf.cli.generate import CHECKPOINT
from llama_perf.rows.bounds import BOUNDS
from scripts.doc_tables.smollm2 import smollm2_path
from tests.correctness.support.command_line import TINY, CommandLine
from tests.correctness.support.plugin_project import ROOT, write_tiny
from tests.correctness.support.tokenizer_samples import train_sentencepiece

TOML, DOCS, CODE = (ROOT / name for name in ("pyproject.toml", "docs", "llama_perf"))
SETS = "batch, cpu, cpu-long, cpu-peers, cpu-tensor-parallel, cuda, cuda-check, filled"
SETS += ", peers, persistent, prefill, published, reference, tensor-parallel, torchao"
SETS += ", unfused"
OF_ROWS = {
    "--rows none.toml": "none.toml: cannot be read: No such file or directory",
    "--rows /": "/: cannot be read: Is a directory",
    f"--rows {TOML}": f"{TOML}: build-system: unknown table; allowed: [defaults], [[ro",
    "--set all": f"set: 'all' is not allowed; allowed: {SETS}",
    "--set cpu --row *int3*": "row: no row of the set cpu matches '*int3*'; `llama-per",
    "--set cpu --row *none.eager.cache-2048*": "row: no row of the set cpu matches "
    "'*none.eager.cache-2048*'; did you mean smollm2-135m-instruct.none.fp32.cpu.eager",
    "--set cpx": "set: 'cpx' is not allowed; allowed: batch, cpu, ",
    "--set refernce": "set: 'refernce' is not allowed; did you mean reference? allowed",
    "--set cpu --rows x": "rows: 'x' is not allowed; give --rows or --set, not both",
}


def unwritable(*fields: str) -> dict[str, str]:
    reasons = {
        "/none/file": "its folder does not exist",
        "/": "it is a folder; give a file",
        # As root a file would take its place.
        "/dev/null": "it is no regular file",
        "n" * 300: "it cannot be reached: File name too long",
        # A folder where not even root can write.
        "/proc/file": "/proc cannot be written: ",
    }
    return {
        f"--{field} {path}": f"{field}: {path!r} is not allowed; {reason}"
        for field in fields
        for path, reason in reasons.items()
    }


# The whole numbers of a row, of which one has another name in `generate`.
_WHOLE = sorted(BOUNDS.keys() - {"temperature", "prompt_length", "tensor_parallel"})

# The start of each command's answer to each mistake.
REFUSED = {
    "": {
        "teach": "command: 'teach' is not allowed; allowed: generate, rows, run, ",
        "repot": "command: 'repot' is not allowed; did you mean report? allowed: ",
        "baseline forget": "action: 'forget' is not allowed; allowed: record, show, ",
        "baseline recrod": "action: 'recrod' is not allowed; did you mean record? al",
    },
    "generate": {
        "--device cpu": f"checkpoint_path: {CHECKPOINT!r} is not allowed; no such file;"
        " give a checkpoint, or a preset's name"
    },
    " ".join(TINY): {
        "--checkpoint_path Foo-17B": "model: 'Foo-17B' is not allowed; allowed: the",
        "--checkpoint_path stories15": "model: 'stories15' is not allowed; did you mea",
        "--checkpoint_path no/folder": "checkpoint: 'no/folder': no such file or fol",
        "--checkpoint_path model.pth": "checkpoint: 'model.pth': no such file or fol",
        f"--checkpoint_path {DOCS}": f"{DOCS}: no weights in this folder; allowed: a ",
        "--num_samples 5 --interactive": "interactive: 'stories15M' has no tokenizer",
        **{
            f"--num_samples 5 --interactive --{words}": f"{words.split()[0]}: not with "
            for words in (
                "prompt Hi",
                "prefill_size 3",
                "batch_size 2",
                "fill 1",
                "save",
            )
        },
        "--precision fp32": "precision: 'fp32' is not allowed; allowed: float32, fl",
        "--device gpu": "device: 'gpu' is not allowed; allowed: cuda, cpu",
        "--kernels mine": "kernels: 'mine' is not allowed; allowed: native, torchao",
        "-q int4wo": "quantization: 'int4wo' is not allowed; did you mean int4wo-64? a",
        "-q int4wo64": "quantization: 'int4wo64' is not allowed; did you mean int4wo-6",
        "-q INT8WO": "quantization: 'INT8WO' is not allowed; did you mean int8wo? allo",
        "-q gptq": "quantization: 'gptq' is not allowed; allowed: int8wo, int8dq, ",
        "-q fp6 --kernels torchao": "scheme fp6 is not built on torchao; built on: nat",
        "--cache_size 4000000": "needs 55.4 GB (KV cache 55.3 GB at cache_size=4000000",
        "--cache_size 0": "cache_size: 0 is not allowed; allowed: 1 to 4194304",
        "--cache_size 3": "cache_size: 3 is not allowed; the row needs 4 positions",
        "--prefill_size 20 --cache_size 10": "cache_size: 10 is not allowed; the row ",
        "--fill 9 --cache_size 12": "cache_size: 12 is not allowed; the row needs 13 ",
        "--prefill_size 0": "prefill_size: 0 is not allowed; allowed: 1 to 4194304",
        "--num_samples 0": "num_samples: 0 is not allowed; allowed: 1 to 10000",
        **{
            f"--{field} {value}": f"{field}: {value} is not allowed; allowed: "
            for field in _WHOLE
            for value in (10**12, 2**63, 10**30)
        },
        "--temperature 1e308": "temperature: 1e+308 is not allowed; allowed: 0 to 1000",
        "--prompt \udcff": "prompt: '\\udcff' is not allowed; it is not UTF-8 text",
        "--memory_profile here": "memory_profile: 'here' is not allowed; it needs CUDA",
        "--num_samples many": "num_samples: 'many' is not allowed; allowed: a whole nu",
        "--temperature x": "temperature: 'x' is not allowed; allowed: a finite number",
        "--temperature nan": "temperature: nan is not allowed; allowed: a finite numbe",
        "--colour red": "unrecognized arguments: --colour red",
        "--pormpt red": "unrecognized arguments: --pormpt red; did you mean --prompt?",
        "--save": "save: it saves a quantized model: give --quantization",
        "--prompt Hi": "prompt: 'stories15M' has no tokenizer to read it; without --pr",
        "--prompt Hi --prefill_size 3": "prompt: not with --prefill_size, whose tokens",
        **unwritable("write_result", "profile"),
    },
    "run": {
        **OF_ROWS,
        **unwritable("results", "markdown"),
        "--resume": "resume: name the results of that run: --results FILE",
        "--inject-slowdown no=5": "inject-slowdown: no selected row matches 'no'",
        "--inject-damage no": "inject-damage: no selected row matches 'no'",
        "--row-timeout nan": "row-timeout: nan is not allowed; allowed: a number of se",
        "--time-budget x": "time-budget: 'x' is not allowed; allowed: a number of seco",
        "--isolate rows": "isolate: 'rows' is not allowed; did you mean row? allowed: ",
        "--set cpu --no-confirm": "no-confirm: it belongs to a comparison with the bas",
        "--set cpu --on-undecided report": "on-undecided: it belongs to a comparison w",
        "--set cpu --base HEAD": "base: it belongs to a comparison with the baseline: ",
        "--set cpu --row *eager* --cold-compile": "cold-compile: no selected row is co",
    },
    "rows": OF_ROWS,
    "baseline record": {
        **OF_ROWS,
        "--baselines /proc/new": "baselines: '/proc/new' is not allowed; /proc cannot ",
        f"--baselines {TOML}": f"baselines: '{TOML}' is not allowed; {TOML} cannot be ",
        f"--baselines {TOML}/b": f"baselines: '{TOML}/b' is not allowed; {TOML} cannot",
        "--processes 0": "processes: 0 is not allowed; allowed: 1 to 1000",
        "--processes -1": "processes: -1 is not allowed; allowed: 1 to 1000",
        "--processes 1001": "processes: 1001 is not allowed; allowed: 1 to 1000",
        "--fresh --row *int8*": "fresh: '*int8*' is not allowed; the selected rows wou",
        "--inject-slowdown *=50": "unrecognized arguments: --inject-slowdown *=50",
        **{
            f"--from x --{words}": f"{words.split()[0]}: not with --from, which runs an"
            for words in ("processes 2", "row *", "set cpu", "wait", "shard 1/2")
        },
    },
    "baseline show": {
        f"--baselines {TOML}": f"baselines: '{TOML}' is not allowed; it cannot be lis",
        f"--baselines {CODE}": f"baselines: {CODE} has none yet; `llama-perf baseline ",
        "--device a100-referense": "device: 'a100-referense' has no baseline in ",
    },
    "compare": {
        "": "compare: name a base: --base REV, --base-python PATH or both",
        "--base no-such": "base: 'no-such' names no commit of ",
        "--base HEAD --pairs 5": "pairs: 5 is not allowed; allowed: an even numb",
        "--base HEAD --pairs 2": "pairs: 2 is not allowed; allowed: an even numb",
        "--base HEAD --pairs 102": "pairs: 102 is not allowed; allowed: an even numb",
        "--base HEAD --pairs x": "pairs: 'x' is not allowed; allowed: an even number f",
        "--base HEAD --least 0": "least: '0' is not allowed; allowed: a percentage ",
        "--base HEAD --least x": "least: 'x' is not allowed; allowed: a percentage ",
        "--base-python /none": "base-python: '/none' is not allowed; name an interpret",
        "--base HEAD --json /no/x": "results: '/no/x' is not allowed; its folder does ",
    },
    "bisect": {
        "": "the following arguments are required: --good, --bad",
        "--good no --bad HEAD": "good: 'no' names no commit of ",
        "--good HEAD --bad no": "bad: 'no' names no commit of ",
        "--good HEAD --bad HEAD --set cpu": "row: 20 rows match; name one by --row",
        "--good HEAD --bad HEAD --least 0": "least: '0' is not allowed; allowed: a per",
        "--good HEAD --bad HEAD --set cpu --row *fp6*": "bad: 'HEAD' is not allowed; i",
    },
}


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> None:
        pytest.fail("it started before it refused")

    monkeypatch.setattr("llama_perf.measure.prepare.build_model", started)
    monkeypatch.setattr("llama_perf.run.session.measure_ceiling", started)
    monkeypatch.setattr("llama_perf.run.worker.worker_command", started)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("command", "words"),
    [(command, words) for command, mistakes in REFUSED.items() for words in mistakes],
)
def test_refusals(cli: CommandLine, command: str, words: str) -> None:
    message = cli.refusal(*command.split(), *words.split())
    assert message.startswith(REFUSED[command][words])


def test_a_machine_without_a_card(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = cli.refusal("generate", "--checkpoint_path", "7B")
    assert message.startswith("no CUDA device on this machine")


def test_a_tokenizer_of_another_vocabulary(tmp_path: Path, cli: CommandLine) -> None:
    # The model knows every id of a text, so that only the sizes differ.
    tokenizer = train_sentencepiece(write_tiny(tmp_path, vocab_size=2000))
    message = cli.refusal(*TINY, "--checkpoint_path", str(tmp_path))
    assert message.startswith(f"{tokenizer}: a tokenizer of 360 tokens is not allowed")
    assert message.endswith("allowed: 977 to 2000 tokens")


@pytest.mark.usefixtures("nothing_runs")
def test_a_text_longer_than_the_cache(cli: CommandLine) -> None:
    words = ("--checkpoint_path", str(smollm2_path()), "--cache_size", "20")
    message = cli.refusal(*TINY, *words, "--prompt", "one " * 40)
    assert message.startswith("cache_size: 20 is not allowed; the row needs ")
    assert "+ 3 new tokens" in message

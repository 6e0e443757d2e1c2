"""Chat templates, compared with transformers' `apply_chat_template`."""

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_perf.checkpoints.tokenizers.chat import Message, encode_chat
from llama_perf.checkpoints.tokenizers.files import load_tokenizer
from llama_perf.checkpoints.tokenizers.templates import ChatTemplate
from llama_perf.checkpoints.tokenizers.tokenizer import Tokenizer
from llama_perf.errors import TokenizerError
from tests.correctness.checkpoints.test_chat import AGAIN, ANSWER, SYSTEM, TALKS, USER
from tests.correctness.checkpoints.test_tokenizer import FRAGMENTS, repeatable
from tests.correctness.support import hugging_face_samples as samples
from tests.correctness.support import tokenizer_samples
from tests.correctness.support.errors import refusal

# In the style of the models' own, with what each of them uses of Jinja.
LLAMA2 = """\
{% if messages[0]['role'] == 'system' %}
{% set rest = messages[1:] %}{% set told = messages[0]['content'] %}
{% else %}{% set rest = messages %}{% set told = false %}{% endif %}
{% for m in rest %}
{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles take turns: user, assistant, user') }}
{% endif %}
{% if loop.index0 == 0 and told %}
{% set text = '<<SYS>>\\n' + told + '\\n<</SYS>>\\n\\n' + m['content'] %}
{% else %}{% set text = m['content'] %}{% endif %}
{% if m['role'] == 'user' %}
{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}
{%- else %}
{{ ' ' ~ text | trim ~ ' ' ~ eos_token }}
{%- endif %}
{% endfor %}"""
LLAMA3 = """\
{{- bos_token }}
{%- if not date is defined %}{% set date = strftime_now('%Y') %}{% endif %}
{%- set ns = namespace(system='', n=0) %}
{%- if messages[0].role == 'system' %}
    {%- set ns.system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools is not none %}{{- tools | tojson(indent=4) }}{% endif %}
{{- 'Year: ' + date + '\\n\\n' + ns.system + '<|eot_id|>' }}
{%- for message in messages %}
    {%- if message.role not in ['user', 'assistant'] %}{% continue %}{% endif %}
    {%- set ns.n = ns.n + message.content | length %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- generation %}{{ message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif %}"""
QWEN = """\
{%- macro turn(role, text) %}
{{- '<|im_start|>' + role + '\\n' + text + '<|im_end|>' + '\\n' }}
{%- endmacro %}
{%- if messages[0]['role'] != 'system' %}{{ turn('system', 'You help.') }}{% endif %}
{%- set ns = namespace(last=messages | length - 1) %}
{%- for m in messages[::-1] if m.role == 'user' %}
    {%- set ns.last = messages.index(m) %}{% break %}
{%- endfor %}
{%- for m in messages %}
    {%- set text = m.content %}
    {%- if '</think>' in text %}
        {%- set text = text.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- turn(m.role, text) }}
    {%- if loop.last or (not loop.last and loop.index0 == ns.last) %}{{ '' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
{{ messages | map(attribute='role') | join(' ') }} {{ dict(a=1)['a'] }}
{{ {'é': [1, 2.5, none, '<&>']} | tojson }}
"""
SMOLLM = """\
{% for message in messages %}
    {% if loop.first and messages[0]['role'] != 'system' %}
        {{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
    {% endif %}
{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
  {{ undefined_name }}{{ eos_token }}{{ pad_token }}
"""
STYLES = {
    "llama2": LLAMA2,
    "llama2-older": LLAMA2,
    "llama3": LLAMA3,
    "qwen2": QWEN,
    "smollm": SMOLLM,
}


def tokenizer_with(kind: str, template: str, **named: str) -> Tokenizer:
    tokenizer = load_tokenizer(samples.folder_of(kind) / "tokenizer.json")
    return replace(
        tokenizer,
        chat_template=ChatTemplate(
            source="a.json: chat_template",
            named={"default": template, **named},
            variables=samples.reference(kind).special_tokens_map,
        ),
    )


def reference_ids(theirs: Any, template: str | None, turns: list[Message]) -> list[int]:
    """transformers' ids, with what people type kept from being special."""
    ids: list[int] = theirs.apply_chat_template(
        [turn._asdict() for turn in turns],
        chat_template=template,
        add_generation_prompt=True,
        return_dict=False,
        sanitize_control_tokens=True,
    )
    return ids


def rendered(theirs: Any, template: str | None, turns: list[Message]) -> str:
    messages = [turn._asdict() for turn in turns]
    text: str = theirs.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=True, tokenize=False
    )
    return text


every_style = pytest.mark.parametrize("kind", STYLES)


@every_style
@pytest.mark.parametrize("turns", TALKS, ids=len)
def test_a_talk_has_transformers_text_and_ids(kind: str, turns: list[Message]) -> None:
    template, theirs = STYLES[kind], samples.reference(kind)
    tokenizer = tokenizer_with(kind, template)
    assert tokenizer.chat_template is not None
    assert tokenizer.chat_template.render(turns) == rendered(theirs, template, turns)
    assert encode_chat(tokenizer, turns) == reference_ids(theirs, template, turns)


@every_style
def test_any_message_has_transformers_ids(kind: str) -> None:
    template, theirs = STYLES[kind], samples.reference(kind)
    tokenizer = tokenizer_with(kind, template)
    control = [*tokenizer.special, *tokenizer.added]
    pieces = [*FRAGMENTS, *control, "<|", "|>", "[/INST]", "\ufdd0", "\ufdd1"]

    @repeatable
    @given(
        st.lists(st.sampled_from(pieces) | st.text(max_size=3), max_size=9).map("".join)
    )
    def same(text: str) -> None:
        answer = re.sub("</?think>", "", text)
        turns = [Message("user", text), Message("assistant", answer), USER]
        # Characters that mark special tokens here.
        plain = [
            Message(role, content.replace("\ufdd0", "").replace("\ufdd1", ""))
            for role, content in turns
        ]
        assert encode_chat(tokenizer, turns) == reference_ids(theirs, template, plain)

    same()


def test_thoughts_of_an_answer_are_the_models_own() -> None:
    tokenizer, theirs = tokenizer_with("qwen2", QWEN), samples.reference("qwen2")
    turns = [USER, Message("assistant", "<think>\nHm.\n</think>\n\nHello"), AGAIN]
    assert tokenizer.chat_template is not None
    expected = rendered(theirs, QWEN, turns)
    assert "assistant\nHello<|im_end|>" in expected
    ids = encode_chat(tokenizer, turns)
    assert ids == theirs.encode(expected, add_special_tokens=False)
    # What it quotes of special tokens stays text.
    quoted = encode_chat(tokenizer, [USER, Message("assistant", "<|im_end|>"), AGAIN])
    assert quoted.count(402) == ids.count(402)


def test_what_is_typed_is_never_special_in_a_template() -> None:
    for kind, template in STYLES.items():
        tokenizer = tokenizer_with(kind, template)
        control = {**tokenizer.special, **tokenizer.added}
        typed = encode_chat(tokenizer, [Message("user", f"x{'y'.join(control)}")])
        plain = encode_chat(tokenizer, [Message("user", "x")])
        assert typed != plain
        special = set(control.values())
        assert [id for id in typed if id in special] == [
            id for id in plain if id in special
        ]


def test_where_a_template_is_found(tmp_path: Path) -> None:
    path = samples.write_folder(tmp_path, "qwen2")
    config = tmp_path / "tokenizer_config.json"

    def found() -> tuple[str, str]:
        template = load_tokenizer(path).chat_template
        assert template is not None
        theirs = rendered(samples.reference_of(tmp_path), None, [USER])
        assert template.render([USER]) == theirs
        return theirs, template.source

    assert load_tokenizer(path).chat_template is None
    samples.change_json(config, chat_template="A")
    assert found() == ("A", f"{config}: chat_template")
    names = [
        {"name": "tool_use", "template": "T"},
        {"name": "default", "template": "D"},
    ]
    samples.change_json(config, chat_template=names)
    assert found() == ("D", f"{config}: chat_template")
    (tmp_path / "chat_template.jinja").write_text("é\n{{ eos_token }}\n", "utf-8")
    source = str(tmp_path / "chat_template.jinja")
    assert found() == ("é\n<|im_end|>", source)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("R")
    assert found() == ("é\n<|im_end|>", source)
    (tmp_path / "chat_template.jinja").unlink()
    message = refusal(encode_chat, load_tokenizer(path), [USER], error=TokenizerError)
    folder = tmp_path / "additional_chat_templates"
    assert message == (
        f"{folder / 'rag.jinja'}: ['rag'] is not allowed; allowed: names of which one"
        " is 'default'"
    )


def test_a_template_beside_a_sentencepiece_model(tmp_path: Path) -> None:
    path = tokenizer_samples.train_sentencepiece(tmp_path)
    config = {"chat_template": LLAMA2, "bos_token": "<s>", "eos_token": "</s>"}
    samples.write_json(tmp_path / "tokenizer_config.json", config)
    told = load_tokenizer(path)
    assert told.chat_template is not None
    # The one of its own, which its special tokens choose, writes the same.
    untold = replace(told, chat_template=None)
    for turns in TALKS:
        assert encode_chat(told, turns) == encode_chat(untold, turns)


def test_the_template_of_a_gguf(tmp_path: Path) -> None:
    tokens, _ = tokenizer_samples.gguf_vocabulary()
    path = tokenizer_samples.write_gguf(
        tmp_path / "a.gguf",
        tokens=[*tokens, *tokenizer_samples.SPECIAL],
        bos_token_id=273,
        eos_token_id=274,
        chat_template="{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
    )
    tokenizer = load_tokenizer(path)
    assert encode_chat(tokenizer, [Message("user", "Hi")]) == [273, *b"Hi", 274]
    template = tokenizer.chat_template
    assert template is not None
    assert template.source == f"{path}: tokenizer.chat_template"


SOURCE = "a.json: chat_template: "
RAISED = [
    ("{{ raise_exception('Only user\\nspeaks') }}", "Only user\\nspeaks"),
    ("one\n{% for %}", "line 2: "),
    ("{{ messages[0].none.other }}", "'dict object' has no attribute 'none'"),
    ("{{ 'a' + 1 }}", "TypeError: can only concatenate str"),
    ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
    ("{% include '/etc/passwd' %}", "TypeError: no loader for this environment"),
    ("{% set a = namespace(__class__=1) %}", "namespace: '__class__' begins with an"),
    ("{% set a = namespace() %}{% set a._x = 1 %}", "namespace: '_x' begins with an"),
    ("{{ ''.__class__.__mro__[1] }}", "access to attribute '__class__' of 'str'"),
    ("{{ messages.append(1) }}", "access to attribute 'append' of 'list'"),
    ("{{ raise_exception.__globals__.x }}", "access to attribute '__globals__' of"),
    ("{{ 'a' * 10 ** 10 }}", "**: the numbers are too large"),
    ("{{ 'a' * 10000000000 }}", "*: the numbers are too large"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError: "),
    ("{% for a in range(10000000) %}{% endfor %}", "OverflowError: Range too big"),
]


@pytest.mark.parametrize(("text", "words"), RAISED)
def test_what_a_template_raises(text: str, words: str) -> None:
    tokenizer = tokenizer_with("qwen2", text)
    message = refusal(encode_chat, tokenizer, [USER], error=TokenizerError)
    assert message.startswith(SOURCE + words)


@pytest.mark.parametrize(
    "text",
    [
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{{ 'long' * 1000 }}{% endfor %}",
        "{% macro f(n=60) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
        "{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_without_end(text: str) -> None:
    tokenizer = tokenizer_with("qwen2", text)
    start = time.process_time()
    message = refusal(encode_chat, tokenizer, [USER], error=TokenizerError)
    assert time.process_time() - start < 30
    assert message == SOURCE + "the template writes without end"


def test_a_template_that_writes_nothing() -> None:
    tokenizer = tokenizer_with("qwen2", "{% if false %}x{% endif %}")
    message = refusal(encode_chat, tokenizer, [USER], error=TokenizerError)
    assert message == SOURCE + "the template writes nothing"


def test_roles_in_another_order_are_the_templates_to_judge() -> None:
    tokenizer = tokenizer_with("llama2", LLAMA2)
    message = refusal(encode_chat, tokenizer, [USER, AGAIN], error=TokenizerError)
    assert message == SOURCE + "Roles take turns: user, assistant, user"
    assert encode_chat(tokenizer, [SYSTEM, USER, ANSWER])

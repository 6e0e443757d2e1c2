"""RowSpec: one row of the suite, its stable id, and the check of its fields.

Knows the work that a row asks for, not whether this machine can run it.
"""

import hashlib
import json
import re
from dataclasses import asdict, fields, replace
from typing import Any

from llama_perf.errors import SpecError
from llama_perf.rows.bounds import BOUNDS, MAX_TOKENS, check_bounds, check_model_name
from llama_perf.rows.choices import (
    ATTENTIONS,
    DEVICES,
    DTYPE_TOKENS,
    KERNELS,
    PERSISTENT,
    cache_kind,
    check_choice,
    check_fused,
)
from llama_perf.rows.limit_overrides import Limits
from llama_perf.rows.modules import ModuleFilter
from llama_perf.rows.ranks_fields import check_ranks_fields
from llama_perf.rows.schemes import (
    AUTOQUANT,
    FAMILIES,
    OWN,
    UNQUANTIZED,
    Scheme,
    is_config,
)
from llama_perf.rows.transformers_fields import OURS, TRANSFORMERS, check_fields
from llama_perf.strict_json import record
from llama_perf.words import counted

# An issue as GitHub abbreviates it, such as pytorch/ao#2376.
_ISSUE = re.compile(r"[\w.-]+/[\w.-]+#[1-9]\d*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,31}")
_NOT_WORK = ("name", "upstream_issue", "limits")
# A fingerprint has these fields always, and any other one where it is not at its
# default: a field that is added leaves the fingerprints of stored rows as they are.
_ALWAYS_HASHED = {
    *("model", "quantization", "kernels", "attention", "dtype", "device"),
    *("compile", "capture", "fused", "compile_prefill", "kv_cache_quantization"),
    *("linear_causal_mask", "cache_size", "fill", "prefill_chunk", "batch_size"),
    *("ragged", "prompt_length", "max_new_tokens", "num_samples", "top_k"),
    "temperature",
}
# The rows of the reference table were hashed before these fields were there.
_HASHED_LATER = (
    *("fused", "prefill_chunk", "ragged", "modules", "engine", "tensor_parallel"),
)
FUSED_TOKENS = 8
"""The largest number of tokens that a fused kernel multiplies at once."""


@record
class RowSpec:
    """Everything that changes the work a row measures.

    Lengths count tokens, which are positions of the key-value cache. `fill` counts the
    positions that are really filled before timing. The defaults are the reference
    table's, but for `attention`: its path, over the whole cache under a mask, is
    "sdpa". `kv_cache_quantization` is False, True for int8 as in that table, or "fp8".
    A prompt runs `prefill_chunk` tokens at a time; without it the engine chooses how
    many. In a `ragged` batch each sequence has a prompt of its own length, from 1 to
    `prompt_length`. `fused` runs a decoding step on kernels for a whole layer
    (`llama/fused.py`, `llama/fused_cpu.py`) instead of its modules, compiled or not;
    with "persistent" on one kernel for all layers (`llama/persistent.py`). `modules`
    are globs of the names of the linears that are quantized (`rows/modules.py`).
    `engine` runs the model; None is this project's. `tensor_parallel` ranks, each on a
    device of its own, share each layer; None is 1. `linear_causal_mask` changes the
    mask of the `sdpa` path; the others have none, so there a row of the table has the
    same work without it.

    `name` is what tables show in place of the id. `upstream_issue`, such as
    "pytorch/ao#2376", says that a library is known to break the row. `limits` are the
    row's own for the gate. None of the three changes the work or the id, but the name
    of a row whose `quantization` is a config, which stands for it in the id.
    """

    model: str
    quantization: str | None = None
    modules: str | None = None
    kernels: str = "native"
    engine: str | None = None
    tensor_parallel: int | None = None
    attention: str = "decode"
    dtype: str = "bfloat16"
    device: str = "cuda"
    compile: bool = False
    capture: bool = False
    fused: bool | str = False
    compile_prefill: bool = False
    kv_cache_quantization: bool | str = False
    linear_causal_mask: bool = False
    cache_size: int | None = None
    fill: int = 0
    prefill_chunk: int | None = None
    batch_size: int = 1
    ragged: bool = False
    prompt_length: int = 6
    max_new_tokens: int = 200
    num_samples: int = 5
    top_k: int | None = 200
    temperature: float = 0.8
    name: str | None = None
    upstream_issue: str | None = None
    limits: Limits | None = None

    def __post_init__(self) -> None:
        check_model_name(self.model)
        if self.quantization == UNQUANTIZED:
            need = "leave it out for an unquantized row"
            raise SpecError("quantization", self.quantization, need)
        family = None
        if self.quantization is not None:
            scheme = Scheme.parse(self.quantization, kernels=self.kernels)
            self._set_scheme(scheme)
            family = scheme.family
        elif self.kernels in KERNELS[1:]:
            need = f"an unquantized row has no {self.kernels} kernels"
            raise SpecError("kernels", self.kernels, need)
        check_choice("kernels", self.kernels, KERNELS)
        engine = OURS if self.engine is None else self.engine
        check_choice("engine", engine, (OURS, TRANSFORMERS))
        object.__setattr__(self, "engine", None if engine == OURS else engine)
        if self.modules is not None and self.quantization is None:
            need = "an unquantized row quantizes no modules"
            raise SpecError("modules", self.modules, need)
        if self.modules is not None and self.quantization in AUTOQUANT:
            need = f"{self.quantization} chooses for every linear"
            raise SpecError("modules", self.modules, need)
        object.__setattr__(self, "modules", ModuleFilter.parse(self.modules).text)
        check_choice("attention", self.attention, ATTENTIONS)
        if cache_kind(self.kv_cache_quantization) == "int8":
            # The reference table writes int8 as true: both are one row with one id.
            object.__setattr__(self, "kv_cache_quantization", True)
        # A file has 1.0 for 1, which is hashed otherwise.
        object.__setattr__(self, "temperature", float(self.temperature))
        check_choice("dtype", self.dtype, tuple(DTYPE_TOKENS))
        check_choice("device", self.device, DEVICES)
        check_fused(self.fused)
        for name in _NUMBERS:
            check_bounds(name, getattr(self, name))
        if self.name is not None and not _NAME.fullmatch(self.name):
            allowed = "allowed: 1 to 32 letters, digits and . _ + -, a letter or digit"
            raise SpecError("name", self.name, f"{allowed} first")
        issue = self.upstream_issue
        if issue is not None and not _ISSUE.fullmatch(issue):
            raise SpecError("upstream_issue", issue, "write owner/repository#number")
        small, gpu = self.batch_size <= FUSED_TOKENS, self.device == "cuda"
        ours = self.kernels in ("native", OWN)
        float8 = family in ("float8dq-tensor", "float8dq-row")
        for name, fulfilled, need in (
            ("capture", gpu, "a CUDA graph needs device 'cuda'"),
            ("compile_prefill", self.compile, "it needs compile = true"),
            ("ragged", self.batch_size > 1, "it needs a batch_size of 2 or more"),
            ("ragged", self.attention != "sdpa", "it needs attention = 'decode'"),
            ("fused", gpu or self.fused != PERSISTENT, "it needs device 'cuda'"),
            ("fused", ours, "it needs kernels = 'native'"),
            ("fused", self.attention == "decode", "it needs attention = 'decode'"),
            ("fused", not float8, f"{self.quantization} has no fused kernels"),
            ("fused", small, f"it needs a batch_size of at most {FUSED_TOKENS}"),
        ):
            if getattr(self, name) and not fulfilled:
                raise SpecError(name, getattr(self, name), need)
        check_fields(self.work, _DEFAULTS)
        if self.tensor_parallel == 1:
            object.__setattr__(self, "tensor_parallel", None)
        check_ranks_fields(self.work)
        if (tokens := self.batch_size * self.allocated_positions) > MAX_TOKENS:
            reason = f"allowed: {MAX_TOKENS} positions of all sequences, not {tokens}"
            raise SpecError("batch_size", self.batch_size, reason)
        if self.cache_size is not None and self.cache_size < self.positions:
            raise SpecError(
                "cache_size",
                self.cache_size,
                f"the row needs {self.positions} positions: fill {self.fill} + prompt"
                f" {self.prompt_length} + {counted(self.max_new_tokens, 'new token')}",
            )

    def _set_scheme(self, scheme: Scheme) -> None:
        """Set the kernels of a user's scheme; write a config in its one way."""
        if scheme.family != OWN:
            return
        object.__setattr__(self, "quantization", scheme.name)
        (kernels,) = scheme.kernels
        if self.kernels not in (_DEFAULTS["kernels"], kernels):
            need = f"leave it out: it is {kernels!r} for this scheme"
            raise SpecError("kernels", self.kernels, need)
        object.__setattr__(self, "kernels", kernels)
        if self.names_scheme and self.name in (UNQUANTIZED, *FAMILIES):
            need = "it is another scheme's, and here the name is the scheme's in the id"
            raise SpecError("name", self.name, need)

    @property
    def scheme(self) -> str:
        """A short name of its scheme for ids; of a config the row's name, if any."""
        if self.quantization is None:
            return UNQUANTIZED
        named = self.name if self.names_scheme else None
        return named or Scheme.parse(self.quantization, kernels=self.kernels).token

    @property
    def title(self) -> str | None:
        """What tables show in place of the id; None where they show the id."""
        return None if self.names_scheme else self.name

    @property
    def names_scheme(self) -> bool:
        """Whether the name is its config's, and part of the id, and not the row's."""
        return self.name is not None and is_config(self.quantization)

    @property
    def positions(self) -> int:
        """Positions of the cache that a generation of this row uses."""
        return self.fill + self.prompt_length + self.max_new_tokens

    @property
    def allocated_positions(self) -> int:
        """Positions of the cache that this row allocates."""
        return self.positions if self.cache_size is None else self.cache_size

    @property
    def ranks(self) -> int:
        """How many ranks share its model."""
        return self.tensor_parallel or 1

    @property
    def ranks_of_a_device(self) -> int:
        """How many of its ranks take memory of the same device: all on a CPU."""
        return self.ranks if self.device == "cpu" else 1

    @property
    def kv_cache(self) -> str | None:
        """The kind of its quantized cache, None for one in the row's dtype."""
        return cache_kind(self.kv_cache_quantization)

    @property
    def unquantized(self) -> "RowSpec":
        """The same row with unquantized weights, and no name."""
        return replace(
            self, quantization=None, modules=None, kernels="native", name=None
        )

    @property
    def is_quantized(self) -> bool:
        """Whether its weights or its cache are quantized."""
        return self.quantization is not None or self.kv_cache is not None

    @property
    def id(self) -> str:
        """The stable id; a field at its default is not in it."""
        tokens = [self.model.lower(), self.scheme]
        if self.kernels != _DEFAULTS["kernels"]:
            tokens.append(self.kernels)
        tokens.append(DTYPE_TOKENS[self.dtype])
        if self.device != _DEFAULTS["device"]:
            tokens.append(self.device)
        tokens.append("compile" if self.compile else "eager")
        for name, form in _TOKENS.items():
            value = getattr(self, name)
            if value != _DEFAULTS[name]:
                if name == "kv_cache_quantization":
                    value = self.kv_cache
                if name == "fused" and value is True:
                    value = name
                if name == "modules":
                    value = ModuleFilter.parse(value).token
                tokens.append(form.format("all" if value is None else value))
        return ".".join(tokens)

    @property
    def work(self) -> dict[str, Any]:
        """The fields that change what is measured."""
        values = asdict(self)
        return {name: values[name] for name in values if name not in _NOT_WORK}

    @property
    def fingerprint(self) -> str:
        """A hash of the work's fields, to notice a row that changed under its id."""
        return _hash(
            {
                name: value
                for name, value in self.work.items()
                if name in _ALWAYS_HASHED or value != _DEFAULTS[name]
            }
        )

    @property
    def first_fingerprint(self) -> str | None:
        """The fingerprint that the first revisions gave this row; None: they had none.

        Their ids were others as well.
        """
        work = self.work
        if any(work.pop(name) != _DEFAULTS[name] for name in _HASHED_LATER):
            return None
        return _hash(work)

    @property
    def reference_key(self) -> tuple[Any, ...]:
        """The fields of a row that the reference table has, but for the device."""
        return tuple(
            value.lower() if name == "model" else value
            for name, value in self.work.items()
            if name not in {"kernels", "attention", "capture", "fused", "device"}
        )


def _hash(work: dict[str, Any]) -> str:
    text = json.dumps(work, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_DEFAULTS = {field.name: field.default for field in fields(RowSpec)}
_NUMBERS = [name for name in _DEFAULTS if name in BOUNDS]
_TOKENS = {
    "engine": "{}",
    "tensor_parallel": "tp-{}",
    "modules": "modules-{}",
    "capture": "capture",
    "fused": "{}",
    "compile_prefill": "compile-prefill",
    "kv_cache_quantization": "kv-{}",
    "linear_causal_mask": "linear-mask",
    "ragged": "ragged",
    "attention": "attention-{}",
    "cache_size": "cache-{}",
    "fill": "fill-{}",
    "prefill_chunk": "chunk-{}",
    "batch_size": "batch-{}",
    "prompt_length": "prompt-{}",
    "max_new_tokens": "new-{}",
    "num_samples": "samples-{}",
    "top_k": "topk-{}",
    "temperature": "temp-{:g}",
}

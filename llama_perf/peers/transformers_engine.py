"""transformers generates: its model, its `generate`, its static cache.

It is `model.generate` itself that runs, since that is what its users call: the time of
a row has what it does around its model. `compile` has it compile its forward for a
token, as it does by itself on a GPU, and `capture` lets the compiler use CUDA graphs,
which is its default there. The prompt runs plain. Tokens are drawn as `Sampling` says,
but from torch's own generator, and of logits that tie for the last place of `top_k`
all may be drawn.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any, Self, Unpack

import torch
from torch import Tensor

from llama_perf.errors import PromptError
from llama_perf.llama.decode_step import InjectedSteps
from llama_perf.llama.layers import inverse_frequencies
from llama_perf.llama.options import EngineOptions, Request, Sampling
from llama_perf.llama.row_engine import Read
from llama_perf.llama.transformer import Transformer, check_tokens
from llama_perf.peers.transformers_model import TransformersModel, import_transformers
from llama_perf.words import counted


class TransformersEngine:
    """A model of transformers with its cache; see `llama_perf.llama.row_engine`.

    It fills no positions in advance.
    """

    caches = None
    filled = 0

    def __init__(self, model: TransformersModel, options: EngineOptions) -> None:
        assert options.slowdown == 0, "its steps cannot be repeated"
        self.model = model
        self.options = options
        self.injected = InjectedSteps(0.0)
        self.after_chunk: Callable[[int, int], None] = lambda _done, _total: None
        self.cache_size = options.cache_size or model.config.context
        self._library = import_transformers()
        config = model.config
        self._cache: Any = self._library.StaticCache(
            config=model.module.config, max_cache_len=self.cache_size
        )
        self._cache.early_initialization(
            batch_size=options.batch_size,
            num_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            dtype=model.dtype,
            device=model.device,
        )
        with torch.device("meta"):
            self.architecture = Transformer(config)
        # The meta device computes none.
        frequencies = inverse_frequencies(config, device=model.device)
        self.architecture.inverse_frequencies = frequencies

    @property
    def output_projection(self) -> Tensor:
        """See `RowEngine`."""
        weight: Tensor = self.model.module.model.layers[0].self_attn.o_proj.weight
        return weight

    def layer_weights(self, index: int, read: Read) -> dict[str, Tensor]:
        """See `RowEngine`."""
        return self.model.layer_weights(index, read)

    def final_weights(self, read: Read) -> dict[str, Tensor]:
        """See `RowEngine`."""
        return self.model.final_weights(read)

    def embedded(self, tokens: Tensor) -> Tensor:
        """See `RowEngine`."""
        embeddings: Tensor = self.model.module.model.embed_tokens(tokens)
        return embeddings

    @torch.no_grad()
    def plain_logits(self, text: Tensor, places: Tensor) -> Tensor:
        """See `RowEngine`: without a cache."""
        x = self.model.module.model(text, use_cache=False).last_hidden_state
        rows = torch.arange(len(places), device=x.device)[:, None]
        logits: Tensor = self.model.module.lm_head(x[rows, places])
        return logits.float()

    def check_prompt(
        self, prompt: Tensor, *, max_new_tokens: int, lengths: Tensor | None = None
    ) -> None:
        """See `RowEngine`; raises PromptError for `lengths`."""
        check_tokens(prompt, self.model.config.vocab_size, self.options.batch_size)
        if lengths is not None:
            raise PromptError("lengths: not allowed with engine 'transformers'")
        if prompt.shape[1] + max_new_tokens > self.cache_size:
            raise PromptError(
                f"prompt: {counted(prompt.shape[1], 'token')} +"
                f" {counted(max_new_tokens, 'new one')} do not fit the cache of"
                f" {counted(self.cache_size, 'position')}"
            )

    def fill(self, tokens: Tensor) -> None:
        """Not built: rows that fill are refused."""
        raise NotImplementedError(f"filling {tokens.shape[1]} positions")

    def longer(self, cache_size: int) -> Self:
        """See `RowEngine`."""
        return type(self)(self.model, replace(self.options, cache_size=cache_size))

    def read(
        self, text: Tensor, prompt_length: int, *, lengths: Tensor | None = None
    ) -> Iterator[Tensor]:
        """See `RowEngine`; of no ragged batch."""
        assert lengths is None, "it has no ragged batches"
        yield self.prefill(text[:, :prompt_length])
        for at in range(prompt_length, text.shape[1] - 1):
            yield self.decode(text[:, at : at + 1], torch.tensor([at]))

    @torch.no_grad()
    def prefill(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """See `RowEngine`; of no ragged batch."""
        assert lengths is None, "it has no ragged batches"
        self._cache.reset()
        module = self.model.module
        mask, config = torch.ones_like(tokens), self._generation(1)
        cached = {"past_key_values": self._cache, "attention_mask": mask}
        cached |= {"logits_to_keep": 1, "use_cache": True}
        out = module._prefill(tokens, config, cached)
        logits: Tensor = out.logits[:, -1].float()
        return logits

    @torch.no_grad()
    def decode(self, token: Tensor, position: Tensor) -> Tensor:
        """See `RowEngine`: by the forward that `generate` calls for a token."""
        module, at = self.model.module, int(position)
        positions = torch.arange(at + 1, device=token.device)
        inputs = module.prepare_inputs_for_generation(
            token.expand(-1, at + 1),
            next_sequence_length=1,
            past_key_values=self._cache,
            position_ids=positions.expand(len(token), -1),
            attention_mask=token.new_ones(len(token), at + 1),
            logits_to_keep=1,
            use_cache=True,
        )
        compiled = self._generation(1).compile_config
        forward = module.get_compiled_call(compiled) if compiled else module.__call__
        logits: Tensor = forward(**inputs, return_dict=True).logits[:, -1].float()
        return logits

    def generate(
        self,
        prompt: Tensor,
        *,
        after_token: Callable[[], object] = lambda: None,
        **request: Unpack[Request],
    ) -> Tensor:
        """See `RowEngine`."""
        going_on = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)

        def told(_tokens: Tensor, _scores: object, **_options: object) -> Tensor:
            after_token()
            return going_on

        return self._generate(prompt, request, stopping_criteria=[told])

    def watched(
        self,
        prompt: Tensor,
        *,
        after_token: Callable[[], object],
        **request: Unpack[Request],
    ) -> None:
        """See `RowEngine`."""
        self.generate(prompt, after_token=after_token, **request)

    def observe(
        self, prompt: Tensor, *, observed: int, **request: Unpack[Request]
    ) -> tuple[Tensor, Tensor]:
        """See `RowEngine`."""
        logits: list[Tensor] = []

        def seen(_tokens: Tensor, scores: Tensor) -> Tensor:
            if len(logits) < observed:
                logits.append(scores.clone())
            return scores

        tokens = self._generate(prompt, request, logits_processor=[seen])
        first = prompt.shape[1]
        return tokens[:, first : first + observed], torch.stack(logits, dim=1)

    def _generate(self, prompt: Tensor, request: Request, **hooks: Any) -> Tensor:
        """All tokens; `hooks` are lists of functions that `generate` calls."""
        sampling = request.get("sampling", Sampling())
        assert request.get("lengths") is None, "it has no ragged batches"
        self._cache.reset()
        _seed(sampling)
        lists = {
            "stopping_criteria": self._library.StoppingCriteriaList,
            "logits_processor": self._library.LogitsProcessorList,
        }
        tokens: Tensor = self.model.module.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            past_key_values=self._cache,
            generation_config=self._generation(request["max_new_tokens"], sampling),
            **{name: lists[name](calls) for name, calls in hooks.items()},
        )
        return tokens

    def _generation(self, count: int, sampling: Sampling = Sampling()) -> Any:
        """Its configuration of a generation of `count` tokens, whatever they are."""
        options, compiled = self.options, None
        drawn: dict[str, Any] = {"do_sample": False}
        if sampling.temperature != 0:
            drawn = {"do_sample": True, "temperature": sampling.temperature}
            drawn |= {"top_k": sampling.top_k or 0, "top_p": 1.0}
        if options.compile:
            mode = "reduce-overhead" if options.capture else "default"
            compiled = self._library.CompileConfig(mode=mode)
            compiled._compile_all_devices = True
        return self._library.GenerationConfig(
            **drawn,
            max_new_tokens=count,
            prefill_chunk_size=options.prefill_chunk,
            compile_config=compiled,
            disable_compile=not options.compile,
        )

    def cache_tensors(self) -> list[Tensor]:
        """See `RowEngine`."""
        layers = self._cache.layers
        return [tensor for layer in layers for tensor in (layer.keys, layer.values)]

    def tensors(self) -> list[Tensor]:
        """See `RowEngine`."""
        module = self.model.module
        return [*module.parameters(), *module.buffers(), *self.cache_tensors()]

    def copy(self) -> Self:
        """See `RowEngine`."""
        model = self.model
        # What it compiled is no part of a copy.
        compiled = model.module.__dict__.pop("_compiled_call", None)
        module = deepcopy(model.module)
        if compiled is not None:
            model.module._compiled_call = compiled
        assert model.origin is not None, "it was built from a reader"
        copied = TransformersModel(module, model.config, model.origin)
        return type(self)(copied, self.options)


def _seed(sampling: Sampling) -> None:
    """Have torch's own generator draw what follows from that of `sampling`."""
    if sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    elif (generator := sampling.generator) is not None:
        seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
        torch.manual_seed(int(seed))

"""What a rank holds while it reads its share, what it keeps, and what is refused."""

import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import save_file
from torch import Tensor

from llama_perf import load_model, quantize_model, save_model
from llama_perf.checkpoints import gguf_values, load
from llama_perf.checkpoints.find import open_weights
from llama_perf.checkpoints.load import OpenedModel
from llama_perf.checkpoints.reader import WeightsReader
from llama_perf.checkpoints.sharded import sharded
from llama_perf.checkpoints.stored import StoredWeights
from llama_perf.devices.cpu import CpuDevice
from llama_perf.devices.ranks import Rank, own_rank
from llama_perf.errors import SpecError, WeightsError
from llama_perf.llama.config import ModelConfig
from llama_perf.measure.live_bytes import LiveBytes
from llama_perf.measure.prepare import check_runnable
from llama_perf.quantize.packed_tensor import PackedTensor
from llama_perf.rows.spec import RowSpec
from tests.correctness.support import query_key_samples, shares
from tests.correctness.support import weights_samples as samples
from tests.correctness.support.errors import refusal
from tests.correctness.support.rank_pool import RankPool
from tests.correctness.support.shares import CONFIG

CPU = torch.device("cpu")
Write = Callable[[ModelConfig, Path], Path]


def safetensors(config: ModelConfig, folder: Path) -> Path:
    shares.write_config(folder, config)
    weights = samples.all_weights(samples.tiny_weights(config))
    stored = shares.split_qkv(weights, config)
    theirs = {samples.hugging_face_name(name): stored[name] for name in stored}
    save_file(theirs, folder / "model.safetensors")
    return folder


def model_pth(config: ModelConfig, folder: Path) -> Path:
    shares.write_config(folder, config)
    weights = samples.all_weights(samples.tiny_weights(config))
    torch.save(weights, folder / "model.pth")
    return folder


def meta_parts(config: ModelConfig, folder: Path) -> Path:
    shares.write_consolidated(folder, config, 1 if config.n_kv_heads % 2 else 2)
    return folder


def gguf_file(config: ModelConfig, folder: Path, kind: Kind = Kind.F32) -> Path:
    heads = config.n_heads, config.n_kv_heads, config.head_dim
    model = query_key_samples.make_model(*heads, config.intermediate_size)
    return query_key_samples.gguf_file(model, folder, kind=kind)


FORMATS: dict[str, Write] = {
    "safetensors": safetensors,
    "model.pth": model_pth,
    "consolidated": meta_parts,
    "GGUF F16": partial(gguf_file, kind=Kind.F16),
    "GGUF Q8_0": partial(gguf_file, kind=Kind.Q8_0),
}
LARGE = replace(CONFIG, intermediate_size=3072)


class HeldBytes(LiveBytes):
    """LiveBytes without what is mapped from a file."""

    def _note(self, storage: torch.UntypedStorage) -> None:
        if not is_map_of_a_file(storage.data_ptr()):
            super()._note(storage)


def is_map_of_a_file(address: int) -> bool:
    with Path("/proc/self/maps").open() as maps:
        for line in maps:
            span, *fields = line.split()
            start, end = (int(number, 16) for number in span.split("-"))
            if start <= address < end:
                return fields[-1].startswith("/")
    return False


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that is held, in torch's memory and in Python's."""
    tracemalloc.start()
    try:
        with HeldBytes("cpu") as live:
            work()
        return int(live.peak) + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def held(weights: dict[str, Tensor]) -> tuple[int, int]:
    """Bytes of all of them, and of the largest."""
    sizes = [weight.nbytes for weight in weights.values()]
    return sum(sizes), max(sizes)


@pytest.mark.parametrize("format_of", FORMATS)
def test_a_rank_holds_its_share_and_little_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_of: str
) -> None:
    monkeypatch.setattr(gguf_values, "_STRETCH", 1 << 12)
    reader = open_weights(FORMATS[format_of](LARGE, tmp_path))
    for rank in (Rank(0, 3), Rank(2, 3)):
        share = sharded(reader, rank)
        # Records are looked at in pieces of 1 MiB, once.
        share.final()
        weights = share.layer(1)
        total, largest = held(weights)
        whole, _ = held(reader.layer(1))
        del weights
        peak = peak_bytes(partial(share.layer, 1))
        assert total <= peak <= total + 1.5 * largest < 0.6 * whole


def test_of_synthetic_weights_one_tensor_is_whole_at_a_time() -> None:
    reader = samples.tiny_weights(LARGE)
    share = sharded(reader, Rank(1, 3))
    total, _ = held(share.layer(0))
    whole, largest = held(reader.layer(0))
    peak = peak_bytes(partial(share.layer, 0))
    # Python's own objects are few.
    assert total + largest / 2 < peak < total + largest + 100_000 < whole


ODD = replace(CONFIG, n_heads=3, n_kv_heads=3, head_dim=32)


@pytest.mark.parametrize("format_of", FORMATS)
def test_a_model_that_ranks_cannot_share_is_refused_before_any_data_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_of: str
) -> None:
    path = FORMATS[format_of](ODD, tmp_path)
    monkeypatch.setattr(StoredWeights, "_tensor", None)
    row = RowSpec(model=str(path), dtype="float32", device="cpu", tensor_parallel=2)
    assert refusal(check_runnable, row, error=SpecError) == (
        "tensor_parallel: 2 is not allowed; n_kv_heads, 3, is no multiple of it;"
        " allowed: 1, 3"
    )


def test_an_output_layer_that_is_not_the_embedding_is_refused(tmp_path: Path) -> None:
    """By the rank that has its rows."""
    tied = replace(CONFIG, tied_embeddings=True)
    folder = safetensors(tied, tmp_path)
    weights = shares.split_qkv(samples.all_weights(samples.tiny_weights(tied)))
    output = weights["tok_embeddings.weight"].clone()
    output[95, 3] += 1
    weights["output.weight"] = output
    theirs = {samples.hugging_face_name(name): weights[name] for name in weights}
    save_file(theirs, folder / "model.safetensors")
    first, last = shares.shares_of(open_weights(folder), 2)
    assert torch.equal(first.final()["output.weight"], output[:48])
    assert refusal(last.final, error=WeightsError) == (
        f"{folder}: lm_head.weight differs from model.embed_tokens.weight, which"
        " config.json ties to it; allowed: the same values"
    )


@pytest.mark.parametrize("write", [model_pth, meta_parts])
def test_a_damaged_record_is_found_by_one_of_the_ranks(
    tmp_path: Path, write: Write
) -> None:
    """Each looks at some of the records, not at all of them."""
    folder = write(CONFIG, tmp_path)
    path = sorted(folder.glob("*.pth"))[0]
    stored = torch.load(path)["layers.1.feed_forward.w3.weight"]
    valid = path.read_bytes()
    at = valid.index(stored.numpy().tobytes()) + 5
    path.write_bytes(valid[:at] + bytes([valid[at] ^ 1]) + valid[at + 1 :])
    found = []
    for share in shares.shares_of(open_weights(folder), 3):
        try:
            share.embedding()
        except WeightsError as error:
            found.append(str(error))
    (message,) = found
    assert message.startswith(f"{path}: damaged or truncated: Bad CRC-32")


def kept_shares(path: Path, agree: bool) -> tuple[bool, bool, int, int]:
    """Run on each rank."""
    rank = own_rank()
    opened = OpenedModel(keep=True)
    with pytest.MonkeyPatch.context() as patch:
        free_bytes = 10**12 if agree or rank.is_first else 0
        patch.setattr(CpuDevice, "free_memory_bytes", lambda _: free_bytes)
        reader, _ = opened(str(path), dtype=torch.float32, device=CPU)
    assert isinstance(reader, StoredWeights)
    assert opened(str(path), dtype=torch.float32, device=CPU)[0] is reader
    embedding, rows = reader.embedding(), reader.final()["output.weight"]
    is_shared = (
        rows.untyped_storage().data_ptr() == embedding.untyped_storage().data_ptr()
    )
    again = samples.all_weights(reader)
    wanted = samples.all_weights(sharded(open_weights(path), rank))
    for name, weight in wanted.items():
        assert torch.equal(again[name], weight), name
    count = sum(weight.numel() for weight in wanted.values()) - rows.numel()
    return opened.unquantized is reader, is_shared, 4 * count, int(reader.kept_bytes)


def test_ranks_keep_their_shares_or_none_does(
    tmp_path: Path, rank_pool: Callable[[int], RankPool]
) -> None:
    path = model_pth(replace(CONFIG, tied_embeddings=True), tmp_path)
    for is_kept, is_shared, wanted, kept_bytes in rank_pool(2).run(
        kept_shares, path, True
    ):
        # A tied output layer takes nothing beside the embedding.
        assert is_kept
        assert is_shared
        assert kept_bytes == wanted
    for is_kept, is_shared, *_ in rank_pool(2).run(kept_shares, path, False):
        assert not is_kept
        assert not is_shared


def keeps(free_bytes: Sequence[int]) -> bool:
    """Whether a rank keeps 1000 bytes, with so many free when each of them asks."""
    with pytest.MonkeyPatch.context() as patch:
        own = free_bytes[own_rank().index]
        patch.setattr(CpuDevice, "free_memory_bytes", lambda _: own)
        return load.may_keep(1000, CPU)


@pytest.mark.parametrize(
    ("free_bytes", "kept"), [((8000, 8000), True), ((8000, 7999), False)]
)
def test_ranks_decide_alike_what_they_keep(
    rank_pool: Callable[[int], RankPool], free_bytes: Sequence[int], kept: bool
) -> None:
    """A quarter of what is free, of both together."""
    assert rank_pool(2).run(keeps, free_bytes) == [kept, kept]


QUANTIZED = replace(CONFIG, dim=192, head_dim=32, intermediate_size=384)


def saved(folder: Path, scheme: str, kernels: str) -> Path:
    model = quantize_model(
        load_model(model_pth(QUANTIZED, folder)), scheme, kernels=kernels
    )
    return save_model(model, folder / "saved")


def dequantized(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: weight if type(weight) is Tensor else weight.dequantize()
        for name, weight in weights.items()
    }


@pytest.mark.parametrize("scheme", ["int8wo", "int8dq", "float8wo"])
def test_what_torchao_can_cut_of_a_saved_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    path = saved(tmp_path, scheme, "torchao")
    layer, final = WeightsReader.layer, StoredWeights.final
    reader = open_weights(path)
    kinds = {type(weight) for weight in samples.all_weights(reader).values()}
    share = sharded(reader, Rank(1, 2))
    assert {type(weight) for weight in samples.all_weights(share).values()} == kinds
    monkeypatch.setattr(WeightsReader, "layer", lambda *args: dequantized(layer(*args)))
    monkeypatch.setattr(StoredWeights, "final", lambda *args: dequantized(final(*args)))
    for count in shares.RANKS:
        shares.assert_whole(reader, count)


def test_what_torchao_cannot_cut_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, "int4wo-64", "torchao")
    reader = open_weights(path)
    monkeypatch.setattr(StoredWeights, "_tensor", None)
    assert refusal(sharded, reader, Rank(0, 2), error=SpecError) == (
        f"tensor_parallel: 2 is not allowed; {path}/model.pth:"
        " layers.0.attention.wqkv.weight: torchao cannot cut Int4OpaqueTensor (768,"
        " 192) so; allowed: the unquantized model, of which each rank quantizes its"
        " share"
    )


def test_a_packed_tensor_is_asked_for_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First without its data; rows and columns are ranges of the whole weight."""
    asked: list[Any] = []

    def share(self: PackedTensor, rows: Any, columns: Any) -> Tensor:
        asked.append((self.device.type, tuple(self.shape), tuple(rows), columns))
        if self.is_meta:
            return self
        weight = torch.cat([self.dequantize()[slice(*part)] for part in rows])
        return weight if columns is None else weight[:, slice(*columns)]

    monkeypatch.setattr(PackedTensor, "share", share, raising=False)
    reader = open_weights(saved(tmp_path, "int8wo", "native"))
    second = sharded(reader, Rank(1, 2))
    every_linear = len(QUANTIZED.linear_names)
    assert [device for device, *_ in asked] == ["meta"] * every_linear
    asked.clear()
    layer = second.layer(0)
    assert asked[0] == (
        *("cpu", (768, 192)),
        *(((192, 384), (480, 576), (672, 768)), None),
    )
    assert asked[1] == ("cpu", (192, 384), ((0, 192),), (192, 384))
    wanted = dequantized(reader.layer(0))["feed_forward.w2.weight"][:, 192:]
    assert torch.equal(layer["feed_forward.w2.weight"], wanted)
    error = SpecError("quantization", "int4wo-128", "the group size 128 and K = 192")

    def refuse(*_: Any) -> None:
        raise error

    monkeypatch.setattr(PackedTensor, "share", refuse)
    line = refusal(sharded, reader, Rank(1, 2), error=SpecError)
    assert line.startswith("tensor_parallel: 2 is not allowed; ")
    assert line.endswith(f"layers.0.attention.wqkv.weight: {error}")

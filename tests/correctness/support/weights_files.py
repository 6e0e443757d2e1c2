"""The tiny model's files, each with what it needs in its folder.

A function writes them into a folder and returns the path of the one it is named after.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.correctness.support import weights_samples as samples


def hugging_face(folder: Path, *, shards: int = 1) -> Path:
    """The tiny model's folder, with its tensors in one file or in shards."""
    samples.write_json(folder / "config.json", samples.CONFIG_JSON)
    weights = samples.split_qkv(samples.all_weights())
    tensors = {samples.hugging_face_name(name): weights[name] for name in weights}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder / "model.safetensors"
    names = sorted(tensors)
    files = [f"part-{number}.safetensors" for number in range(shards)]
    weight_map = {name: files[at % shards] for at, name in enumerate(names)}
    for shard in set(weight_map.values()):
        inside = {name: tensors[name] for name in names if weight_map[name] == shard}
        save_file(inside, folder / shard)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    samples.write_json(folder / "model.safetensors.index.json", index)
    return folder / "model.safetensors.index.json"


def hugging_face_config(folder: Path) -> Path:
    path = hugging_face(folder).with_name("config.json")
    rope = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    more = {"rope_theta": 5e5, "rope_scaling": rope, "tie_word_embeddings": False}
    samples.write_json(path, {**samples.CONFIG_JSON, **more})
    return path


def pth(folder: Path, *, name: str = "model.pth", **options: bool) -> Path:
    samples.write_json(folder / "params.json", samples.PARAMS_JSON)
    torch.save(_small_pickle(), folder / "model.pth", **options)
    return folder / name


def consolidated(folder: Path) -> Path:
    samples.write_json(folder / "params.json", samples.PARAMS_JSON)
    for number, part in enumerate(samples.consolidated(_small_pickle(), 2, 1)):
        torch.save(part, folder / f"consolidated.{number:02}.pth")
    return folder / "consolidated.01.pth"


def _small_pickle() -> dict[str, Tensor]:
    return samples.split_qkv(samples.all_weights())

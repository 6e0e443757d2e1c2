"""The machine and the libraries that a measurement was taken on."""

from llama_perf.strict_json import record


@record
class Environment:
    """The machine and the libraries a measurement was taken on; None: not known."""

    device_key: str
    device_name: str
    device_memory_bytes: int
    threads: int | None
    driver: str | None
    cuda: str | None
    platform: str | None
    python: str | None
    torch: str | None
    torchao: str | None
    triton: str | None
    llama_perf: str | None
    commit: str | None
    float32_matmul_precision: str | None
    device_uuid: str | None = None
    cpu_features: str | None = None

    def changes(self, new: "Environment", *, commit: bool = False) -> tuple[str, ...]:
        """Fields in which `new` differs, each as "field: old -> new".

        The commit is compared only with `commit`.
        """
        return tuple(
            f"{name}: {getattr(self, name)} -> {getattr(new, name)}"
            for name in Environment.__dataclass_fields__
            if (commit or name != "commit")
            and getattr(self, name) != getattr(new, name)
        )

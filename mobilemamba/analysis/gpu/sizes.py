"""Sizes of a run on a GPU: all of it, or just enough to try the run itself on any machine."""

from __future__ import annotations

from dataclasses import dataclass

from mobilemamba.analysis.benchmark.cases import own_size


@dataclass(frozen=True)
class Sizes:
    """Networks, shapes and rounds; the first of each is the most important one."""

    dtypes: tuple[str, ...] = ("float16", "bfloat16", "float32")
    lengths: tuple[int, ...] = (196, 49, 16, 144, 36, 9, 1, 7, 64, 225, 256, 1024)  # L of the scan
    widths: tuple[int, ...] = (320, 544, 224, 30)  # D
    directions: tuple[int, ...] = (2, 4, 1)  # K
    states: tuple[int, ...] = (1, 16)  # N
    #: Networks of ours, each with the EfficientViT of its class.
    pairs: tuple[tuple[str, str], ...] = (
        ("mobilemamba_s6", "efficientvit_m5"),
        ("mobilemamba_t4", "efficientvit_m4"),
        ("mobilemamba_t2", "efficientvit_m2"),
    )
    others: tuple[str, ...] = ("mobilemamba_b1", "shvit_s2")
    img_size: int | None = None  # pixels; None for each network's own
    batches: tuple[int, ...] = (256, 1)
    kernel_batches: tuple[int, ...] = (256, 32, 1)
    train_batch: int = 256
    memory_batch: int = 16
    memory_sizes: tuple[int, ...] = (256, 512, 768, 1024)
    rounds: int = 5
    seconds: float = 0.05  # per configuration in a round
    warmup: float = 0.1  # seconds
    matrix_side: int = 8192
    copied_bytes: int = 2**30
    compiled: bool = True

    @property
    def ours(self) -> tuple[str, ...]:
        return (*(ours for ours, _ in self.pairs), *(name for name in self.others if name.startswith("mobilemamba")))

    def size_of(self, model: str) -> int:
        return self.img_size or own_size(model)


QUICK = Sizes(
    dtypes=("float32", "bfloat16"),
    lengths=(6, 1),
    widths=(5,),
    directions=(2,),
    states=(1,),
    pairs=(("mobilemamba_t2", "test_efficientnet"),),
    others=(),
    img_size=64,
    batches=(2,),
    kernel_batches=(2,),
    train_batch=2,
    memory_batch=2,
    memory_sizes=(32, 64),
    rounds=1,
    seconds=0.001,
    warmup=0.001,
    matrix_side=64,
    copied_bytes=2**16,
    compiled=False,
)

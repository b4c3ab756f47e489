import hashlib
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader

from mobilemamba.data import FashionMNISTSample
from mobilemamba.data.fashion_mnist import read_sample, split_mask
from mobilemamba.errors import ConfigError, DataError


def ready(**arguments: Any) -> FashionMNISTSample:
    data = FashionMNISTSample(**arguments)
    data.setup()
    return data


def epoch_of(data: FashionMNISTSample, epoch: int, batches: int = 2) -> list[torch.Tensor]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    iterator = iter(loader)
    return [part for _ in range(batches) for part in next(iterator)]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_split_is_the_same_for_ever() -> None:
    pictures, labels = read_sample()
    val = split_mask(labels)
    digest = {
        part: hashlib.sha256(pictures[mask].numpy().tobytes() + labels[mask].numpy().tobytes()).hexdigest()[:16]
        for part, mask in (("train", ~val), ("val", val))
    }
    assert digest == {"train": "18646e5254dfa8f0", "val": "0c730873b4f34be7"}


def test_split_is_stratified() -> None:
    _, labels = read_sample()
    val = split_mask(labels)
    assert labels[~val].bincount().tolist() == [800] * 10
    assert labels[val].bincount().tolist() == [200] * 10


def test_nearest_neighbour_baseline() -> None:
    pictures, labels = read_sample()
    val = split_mask(labels)
    flat = pictures.flatten(1).float() / 255
    nearest = torch.cdist(flat[val], flat[~val]).argmin(1)
    assert (labels[~val][nearest] == labels[val]).float().mean().item() == pytest.approx(0.803, abs=1e-3)


def test_what_it_offers_before_setup() -> None:
    data = FashionMNISTSample()
    assert data.num_classes == len(data.class_names) == 10
    assert data.name == "Fashion-MNIST sample (8,000/2,000)"
    assert len(data.mean) == len(data.std) == 3
    assert data.preprocessing == {
        "img_size": (64, 64),
        "mean": data.mean,
        "std": data.std,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "upright": True,
    }


def test_statistics_are_those_of_the_training_pictures() -> None:
    pictures, labels = read_sample()
    train = pictures[~split_mask(labels)].float() / 255
    assert FashionMNISTSample.mean[0] == pytest.approx(train.mean().item(), abs=1e-4)
    assert FashionMNISTSample.std[0] == pytest.approx(train.std().item(), abs=1e-4)


@settings(max_examples=15)
@given(size=st.one_of(st.integers(1, 80), st.tuples(st.integers(1, 80), st.integers(1, 80))))
def test_any_size(size: int | tuple[int, int]) -> None:
    data = ready(img_size=size, batch_size=3)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        images, labels = next(iter(loader))
        assert images.shape == (3, 3, *(size if isinstance(size, tuple) else (size, size)))
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert images.isfinite().all()
        assert torch.equal(images[:, 0], images[:, 2])
        images.mul_(2)  # Mixup writes into the batch; a view would refuse


def test_validation_pictures_are_the_files_pixels_normalised() -> None:
    data = ready(img_size=28, batch_size=2000)
    images, labels = next(iter(data.val_dataloader()))
    pictures, all_labels = read_sample()
    val = split_mask(all_labels)
    torch.testing.assert_close(images[:, 1] * data.std[1] + data.mean[1], pictures[val].float() / 255)
    assert torch.equal(labels, all_labels[val])


def test_training_pictures_are_normalised() -> None:
    images = torch.cat([batch[0] for batch in ready(img_size=28, max_shift=0, batch_size=500).train_dataloader()])
    assert images.mean().item() == pytest.approx(0, abs=1e-3)
    assert images.std().item() == pytest.approx(1, abs=1e-3)


def test_shift_and_flip_are_what_they_say() -> None:
    plain, moved = ready(img_size=28, max_shift=0, hflip=0), ready(img_size=28, max_shift=2, hflip=0.5)
    assert plain.train_set is not None
    assert moved.train_set is not None
    kinds = set()
    for key in range(200):
        original, image = plain.train_set[key][0][0], moved.train_set[key][0][0]
        dark = original.min()
        found = None
        for flip in (False, True):
            source = original.flip(1) if flip else original
            padded = torch.nn.functional.pad(source, (2,) * 4, value=dark.item())
            for top in range(5):
                for left in range(5):
                    if torch.equal(padded[top : top + 28, left : left + 28], image):
                        found = (flip, top, left)
        assert found is not None, f"picture {key} is no shifted or flipped original"
        kinds.add(found)
    assert len(kinds) > 30


def test_the_seed_is_that_of_everything_unless_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert FashionMNISTSample().seed == 0
    seed_everything(3, verbose=False)
    assert (FashionMNISTSample().seed, FashionMNISTSample(seed=0).seed) == (3, 0)


def test_same_seed_and_epoch_give_the_same_pictures_after_anything() -> None:
    walked = ready(img_size=16)
    epochs = [epoch_of(walked, epoch) for epoch in range(3)]
    resumed = ready(img_size=16)
    torch.manual_seed(7)  # not the global stream
    assert same(epoch_of(resumed, 2), epochs[2])
    assert not same(epochs[1], epochs[2])
    assert not same(epoch_of(ready(img_size=16, seed=1), 2), epochs[2])


def test_workers_change_nothing() -> None:
    assert same(epoch_of(ready(img_size=16, num_workers=2), 3), epoch_of(ready(img_size=16, num_workers=0), 3))


def test_loading_draws_nothing_from_the_global_stream() -> None:
    data = ready(img_size=16)
    before = torch.get_rng_state()
    epoch_of(data, 0)
    next(iter(data.val_dataloader()))
    assert torch.equal(torch.get_rng_state(), before)


class Recorder(LightningModule):
    """Notes what it is given, batch by batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, float]] = []

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        self.seen.append((self.current_epoch, batch[0].double().sum().item()))
        return self.weight * 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_resumed_training_sees_what_an_uninterrupted_one_sees(tmp_path: Any) -> None:
    def trainer(epochs: int) -> Trainer:
        return Trainer(
            max_epochs=epochs,
            limit_train_batches=3,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole, first, second = Recorder(), Recorder(), Recorder()
        trainer(3).fit(whole, FashionMNISTSample(img_size=8, batch_size=32))
        stopped = trainer(1)
        stopped.fit(first, FashionMNISTSample(img_size=8, batch_size=32))
        stopped.save_checkpoint(tmp_path / "one.ckpt")
        trainer(3).fit(second, FashionMNISTSample(img_size=8, batch_size=32), ckpt_path=tmp_path / "one.ckpt")
    assert len({total for _, total in whole.seen}) == 9
    assert first.seen + second.seen == whole.seen


@pytest.mark.parametrize(("batch_size", "batches"), [(7999, 1), (64, 125), (63, 127), (31, 259), (8000, 1), (9000, 1)])
def test_no_training_batch_of_one_picture(batch_size: int, batches: int) -> None:
    loader = ready(img_size=1, batch_size=batch_size).train_dataloader()
    sizes = [len(labels) for _, labels in loader]
    assert len(sizes) == len(loader) == batches
    assert min(sizes) > 1
    assert sum(sizes) >= 7999


@pytest.mark.parametrize(("ranks", "batch_size", "drops"), [(1, 3999, False), (2, 3999, True), (3, 2666, True)])
def test_a_last_batch_of_one_is_seen_from_each_process(ranks: int, batch_size: int, drops: bool) -> None:
    data = ready(batch_size=batch_size)
    data.trainer = SimpleNamespace(world_size=ranks, global_rank=0, num_devices=ranks)  # type: ignore[assignment]
    assert data.train_dataloader().drop_last is drops


def test_validation_drops_nothing() -> None:
    assert sum(len(labels) for _, labels in ready(img_size=1, batch_size=1999).val_dataloader()) == 2000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_size": 0}, "data.img_size 0"),
        ({"img_size": (32, -1)}, "data.img_size"),
        ({"batch_size": 0}, "data.batch_size 0"),
        ({"num_workers": -1}, "data.num_workers -1"),
        ({"seed": -1}, "data.seed -1"),
        ({"max_shift": 28}, "data.max_shift 28"),
        ({"hflip": 1.5}, "data.hflip 1.5"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ready(**arguments)
    assert "\n" not in str(caught.value)


def test_training_on_batches_of_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.batch_size 1 .* use a batch size"):
        ready(batch_size=1).train_dataloader()
    assert isinstance(ready(batch_size=1).val_dataloader(), DataLoader)


def test_loader_before_setup_is_refused() -> None:
    with pytest.raises(DataError, match="call setup"):
        FashionMNISTSample().train_dataloader()

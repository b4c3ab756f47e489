"""A finished run leaves its numbers, an unfinished one none."""

import json

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from mobilemamba.models import ArchOverrides
from mobilemamba.tasks import ClassificationTask, DetectionTask, SegmentationTask
from mobilemamba.training.callbacks import RunResults
from mobilemamba.training.callbacks import results as results_module
from tests.training.callbacks.runs import Data, StopAfter, fit, small_task

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::UserWarning:torch")


@pytest.fixture
def quick_measure(monkeypatch):
    """Counting and timing have tests of their own."""
    monkeypatch.setattr(results_module, "measure_network", lambda *_, **__: {"img_size": 224, "flops": 7})


class Averaged(ClassificationTask):
    """Its average is better than itself."""

    def __init__(self):
        super().__init__("test_efficientnet", num_classes=5, warmup_epochs=0, ema_decay=0.5)

    def on_validation_epoch_end(self):
        self.log_dict({"val/top1": 40.0, "val/top1_ema": 60.0, "val/top1_max": 60.0, "val/none": float("nan")})


@pytest.mark.usefixtures("quick_measure")
class TestRunResults:
    def test_a_finished_run_leaves_its_numbers(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PL_GLOBAL_SEED", "3")
        results = RunResults()
        trainer, _ = fit(tmp_path / "run", 2, module=small_task, extra=(results,))
        written = json.loads((tmp_path / "run" / "results.json").read_text())
        assert written["top1_last"] == pytest.approx(float(trainer.callback_metrics["val/top1"]))
        assert written["top5"] == 100
        best = max(results.history, key=lambda entry: entry["val/top1"])
        assert (written["top1"], written["best_epoch"]) == (best["val/top1"], best["epoch"])
        expected = {
            "epochs": 2,
            "seed": 3,
            "resumes": 0,
            "data": "noise",
            "num_classes": 5,
            "img_size": 32,
            "train_pictures": 12,
            "val_pictures": 12,
            "total_batch_size": 4,
            "measured": {"img_size": 224, "flops": 7},
            "torch": torch.__version__,
        }
        assert {key: written[key] for key in expected} == expected
        assert (tmp_path / "run" / written["checkpoint"]).is_file()
        files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        trainer.validate(trainer.lightning_module, Data(), verbose=False)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
        assert written["hours"] > 0
        assert written["peak_mem_gib"] > 0
        assert json.loads((tmp_path / "run" / "measure.json").read_text())["flops"] == 7
        progress = json.loads((tmp_path / "run" / "progress.json").read_text())
        assert (progress["epoch"], progress["max_epochs"], progress["top1"]) == (2, 2, written["top1_last"])

    def test_the_best_is_that_of_the_better_network(self, tmp_path):
        results = RunResults()
        fit(tmp_path, 2, module=Averaged, extra=(results,))
        written, progress = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("results", "progress"))
        assert (written["top1"], written["top1_ema"], written["score"], progress["best"]) == (40, 60, 60, 60)
        assert all("val/top1" in entry and "val/none" not in entry for entry in results.history), "NaN is no JSON"
        assert not any("train" in name for entry in results.history for name in entry), "of the epoch before"

    def test_a_killed_run_has_none_and_goes_on_counting(self, tmp_path):
        folder = tmp_path / "run"

        def start(kill_at=None):
            results = RunResults()
            last = folder / "last.ckpt"
            extra = (results, *([StopAfter(kill_at)] if kill_at is not None else []))
            fit(folder, 3, module=small_task, extra=extra, ckpt_path=str(last) if last.exists() else None)
            return results

        for kill_at in (1, 1, 2):  # the second dies before it saved anything
            with pytest.raises(ConnectionAbortedError):
                start(kill_at)
            assert not (folder / "results.json").exists()
            progress = json.loads((folder / "progress.json").read_text())
        assert progress["resumes"] == 2
        finished = start()
        assert [entry["epoch"] for entry in finished.history] == [1, 2, 3]
        written = json.loads((folder / "results.json").read_text())
        assert (written["resumes"], written["epochs"]) == (3, 3)

        (folder / "results.json").unlink()  # killed between the last checkpoint and the results
        start()
        again = json.loads((folder / "results.json").read_text())
        for key in ("top1", "top5", "best_epoch", "top1_last", "epochs", "train_pictures", "val_pictures"):
            assert again[key] == written[key], key

    def test_ctrl_c_leaves_no_results(self, tmp_path):
        class CtrlC(Callback):
            def on_train_batch_start(self, *_):
                raise KeyboardInterrupt

        with pytest.raises(SystemExit):
            fit(tmp_path, 1, module=small_task, extra=(RunResults(), CtrlC()))
        assert not (tmp_path / "results.json").exists()

    def test_a_new_run_takes_an_older_one_s_results_away(self, tmp_path):
        (tmp_path / "results.json").write_text("{}")
        with pytest.raises(ConnectionAbortedError):
            fit(tmp_path, 1, module=small_task, extra=(RunResults(), StopAfter(0)))
        assert not (tmp_path / "results.json").exists()

    def test_a_limited_validation_says_on_how_many_pictures(self, tmp_path):
        trainer = Trainer(
            max_epochs=1,
            limit_val_batches=1,
            limit_train_batches=2,
            callbacks=[RunResults()],
            default_root_dir=tmp_path,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            accelerator="cpu",
        )
        trainer.fit(small_task(), Data())
        written = json.loads((tmp_path / "results.json").read_text())
        assert (written["train_pictures"], written["val_pictures"]) == (8, 5)
        assert written["checkpoint"] is None

    def test_a_network_that_cannot_be_measured_is_trained_all_the_same(self, tmp_path, monkeypatch):
        def refuse(*_, **__):
            raise AssertionError("Input height (224) doesn't match model (384).")

        monkeypatch.setattr(results_module, "measure_network", refuse)
        with pytest.warns(UserWarning, match="table_img_size"):
            fit(tmp_path, 1, module=small_task, extra=(RunResults(),))
        assert json.loads((tmp_path / "results.json").read_text())["measured"] is None

    @pytest.mark.parametrize(("task", "batch"), [(ClassificationTask, None), (DetectionTask, 1), (SegmentationTask, 1)])
    def test_no_training_waits_for_the_timing_of_more_than_one_large_picture(self, monkeypatch, task, batch):
        monkeypatch.setattr(results_module, "measure_network", lambda *_, batch_size, **__: {"batch": batch_size})
        small = task("mobilemamba_t2", arch=ArchOverrides(embed_dims=(16, 16, 16), depths=(1, 1, 1)))
        assert RunResults()._measure(small, 800, torch.device("cpu")) == {"batch": batch}

"""What the command does, from one end to the other."""

import csv
import json
import pickle
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock

from mobilemamba.cli import plan
from mobilemamba.cli.save_config import SaveFitConfig
from mobilemamba.errors import ConfigError, MobileMambaError
from mobilemamba.models import read_card
from mobilemamba.sweep import network_kwargs
from mobilemamba_command import COMMANDS, Command, main

TINY = shlex.split(
    "--trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.limit_val_batches 1 --trainer.accelerator cpu "
    "--data.img_size 32 --data.batch_size 4 --model.warmup_epochs 0 --model.arch.embed_dims [16,16,16] "
    "--model.arch.depths [1,1,1] --table_size null"
)


def test_fit_alone_trains_on_the_sample_and_keeps_runs_apart() -> None:
    cli = main(["fit", *TINY])
    assert type(cli.datamodule).__name__ == "FashionMNISTSample"
    assert cli.model.hparams["num_classes"] == 10
    run_dir = Path("runs/default")
    assert json.loads((run_dir / "results.json").read_text())["data"] == cli.datamodule.name
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert list(run_dir.glob("events*"))
    drawn = {"confusion_matrix", "learning_curves", "training_examples", "validation_examples"}
    assert {path.stem for path in run_dir.glob("*.png")} == drawn
    assert "val/top1" in next(csv.reader((run_dir / "csv/version_0/metrics.csv").open()))
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert config["seed_everything"] == 0
    assert config["trainer"]["deterministic"] == "warn"
    for callback in cli.trainer.callbacks:
        if isinstance(callback, SaveFitConfig):  # as for a process of ddp_spawn
            assert pickle.loads(pickle.dumps(callback))._text == (run_dir / "config.yaml").read_text()

    main(["fit", *TINY])
    assert Path("runs/default-2/results.json").exists()
    with pytest.raises(ConfigError, match="holds a run already; go on with it by --ckpt_path last"):
        main(["fit", *TINY, "--trainer.default_root_dir", "runs/default"])

    # Other commands leave the training's files alone.
    before = (run_dir / "config.yaml").read_text()
    main(["validate", "--config", str(run_dir / "config.yaml"), "--ckpt_path", str(run_dir / "checkpoints/best.ckpt")])
    assert (run_dir / "config.yaml").read_text() == before

    card = read_card(run_dir / "best.safetensors")
    assert (card.model, card.class_names) == ("mobilemamba_s6", cli.datamodule.class_names)
    assert card.preprocessing.img_size == (32, 32)


def test_the_seed_of_everything_is_that_of_the_pictures_too() -> None:
    """Else networks that start alike, as in fine-tuning, would be the same with any seed."""
    trial = ["fit", *TINY, "--trainer.fast_dev_run", "1", "--seed_everything", "3"]
    assert main(trial).datamodule.seed == 3
    assert main([*trial, "--data.seed", "5"]).datamodule.seed == 5


def test_last_is_written_in_epochs_that_are_not_the_best_beside_a_checkpoint_of_one_s_own() -> None:
    own = shlex.split("--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.monitor=val/loss")
    main(["fit", *TINY, "--trainer.max_epochs", "3", "--model.lr", "0", *own])
    folder = Path("runs/default")
    last = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert last["epoch"] == 2
    assert (folder / "best.safetensors").exists()
    assert list(folder.glob("checkpoints/epoch=*.ckpt"))
    logged = list(csv.DictReader((folder / "csv/version_0/metrics.csv").open()))
    assert sum(bool(line["train/grad_norm"]) and bool(line["lr"]) for line in logged) == 6  # of steps


def test_a_run_folder_in_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("runs/x").mkdir(parents=True)
    monkeypatch.setattr("mobilemamba.cli.run_folder.LOCK_SECONDS", 0.1)
    with FileLock("runs/x/.lock"), pytest.raises(ConfigError, match="another process is training in runs/x"):
        main(["fit", *TINY, "--name", "x"])


def test_the_lock_is_released_after_a_run() -> None:
    with pytest.raises(MobileMambaError):
        main(["fit", *TINY, "--name", "x", "--model.name", "resnet999"])
    main(["fit", *TINY, "--name", "x"])


def test_a_callback_whose_defaults_are_no_yaml_is_kept_with_the_run() -> None:
    main(["fit", *TINY, "--trainer.callbacks", "Timer"])
    saved = yaml.safe_load(Path("runs/default/config.yaml").read_text())
    assert saved["trainer"]["callbacks"]["init_args"]["interval"] == "step"
    assert plan(["--config", "runs/default/config.yaml"])


def test_help_lists_commands_and_tools(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    listed = capsys.readouterr().out
    for command in ("fit", "validate", "test", "predict", "backends", "convert", "summary"):
        assert f"  {command} " in listed
    with pytest.raises(ConfigError, match=r"unknown command 'fitt': did you mean fit\?"):
        main(["fitt"])
    with pytest.raises(ConfigError, match=r"unknown command 'x': expected one of: fit, .*summary"):
        main(["x"])


def test_tools_are_dispatched(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def shout(text: str, times: int = 1) -> None:
        print(text.upper() * times)

    monkeypatch.setattr("mobilemamba.tools.shout", shout, raising=False)
    monkeypatch.setitem(COMMANDS, "shout", Command("shout", "mobilemamba.tools:shout"))
    assert main(["shout", "a", "--times", "3"]) is None
    assert capsys.readouterr().out == "AAA\n"
    with pytest.raises(ConfigError, match="times: expected a whole number, got x"):
        main(["shout", "a", "--times", "x"])


def test_print_config_of_a_sweep(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", str(root / "experiments/ablation_xi.yaml"), "--print_config"])
    assert caught.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert len(printed["sweep"]["rows"]) == 9
    assert not Path("runs").exists()


def test_options_win_over_a_file_wherever_they_stand(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("trainer: {max_epochs: 5}")
    file, option = ["--config", "x.yaml"], ["--trainer.max_epochs", "7"]
    for options in ([*option, *file], [*file, *option]):
        assert plan(options)[0].config["trainer"]["max_epochs"] == 7


def test_plan_gives_what_timm_takes(root: Path) -> None:
    rows = plan(["--config", str(root / "experiments/ablation_xi.yaml")])
    assert len(rows) == 9
    assert network_kwargs(rows[0].config) == {
        "model_name": "mobilemamba_s6",
        "global_ratio": [0.6, 0.6, 0.6],
        "local_ratio": [0.4, 0.3, 0.3],
    }
    single = plan(["--model.name", "resnet18"])
    assert [network_kwargs(row.config) for row in single] == [{"model_name": "resnet18"}]

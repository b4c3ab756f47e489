"""Atomic writing: whole, replacing, and harmless when it fails."""

import os

import pytest

from mobilemamba.files import write_text_atomic


def test_writes_utf8_and_replaces(tmp_path):
    path = tmp_path / "results.json"
    write_text_atomic(path, "first, and longer\n")
    write_text_atomic(path, "ξ = 0.8\n")
    assert path.read_bytes() == "ξ = 0.8\n".encode()
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_others_may_read_it_as_they_may_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    write_text_atomic(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failure_keeps_the_old_content_and_leaves_nothing_behind(tmp_path, monkeypatch, step):
    path = tmp_path / "results.json"
    write_text_atomic(path, "old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full_disk)
    with pytest.raises(OSError, match="No space"):
        write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_the_content_is_on_disk_before_the_name_changes(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    seen = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (seen.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *names: (seen.append("replace"), replace(*names)))
    write_text_atomic(path, "x")
    assert seen == ["fsync", "replace"]

"""Atomic writing: whole, replacing, and harmless when it fails."""

import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from mobilemamba.errors import ConfigError
from mobilemamba.files import (
    check_writable,
    link_atomic,
    make_folder,
    read_json,
    remove_unfinished,
    temporary_beside,
    write_atomic,
    write_text_atomic,
)


def test_writes_utf8_and_replaces(tmp_path):
    path = tmp_path / "results.json"
    write_text_atomic(path, "first, and longer\n")
    write_text_atomic(path, "ξ = 0.8\n")
    assert path.read_bytes() == "ξ = 0.8\n".encode()
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_others_may_read_it_as_they_may_any_new_file(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_text_atomic(tmp_path / "atomic", "")
    finally:
        os.umask(before)
    assert (tmp_path / "atomic").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failure_keeps_the_old_content_and_leaves_nothing_behind(tmp_path, monkeypatch, step):
    path = tmp_path / "results.json"
    write_text_atomic(path, "old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full_disk)
    with pytest.raises(OSError, match="No space") as caught:
        write_text_atomic(path, "new")
    assert (caught.value.errno, caught.value.filename) == (28, str(path))
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


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_keeps_the_content_when_the_first_gets_another(tmp_path, monkeypatch, links):
    if not links:

        def no_links(*_):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", no_links)
    path, former = tmp_path / "last", tmp_path / "previous"
    path.write_text("one")
    former.write_text("none")
    link_atomic(path, former)  # the system leaves both names of one file as they are when one is to replace the other
    write_atomic(path, b"two", before=lambda: link_atomic(path, former))
    assert (path.read_text(), former.read_text()) == ("two", "one")
    assert len(list(tmp_path.iterdir())) == 2


def write_until_told(told):
    """Tells what it writes, and goes on until it is told something."""
    with temporary_beside(Path("x"), folder=True) as folder, temporary_beside(Path("x")) as file:
        (folder / "part").touch()
        told.send([str(folder), str(file)])
        told.recv()


def test_what_killed_processes_have_left_is_removed_and_what_living_ones_write_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    forks = multiprocessing.get_context("fork")  # to import the package anew takes seconds
    (dead, killed), (alive, used) = ((*forks.Pipe(),) for _ in "12")
    processes = [forks.Process(target=write_until_told, args=(told,)) for told in (killed, used)]
    for process in processes:
        process.start()
    try:
        left, written = dead.recv(), alive.recv()
        processes[0].kill()
        processes[0].join()
        (tmp_path / ".x.y.tmp").touch()  # of another program
        assert {path.name for path in tmp_path.iterdir()} == {".x.y.tmp", *left, *written}
        check_writable(tmp_path / "x", "x")
        assert {path.name for path in tmp_path.iterdir()} == {".x.y.tmp", *written}
        alive.send("end")
        processes[1].join()
        assert processes[1].exitcode == 0
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert [path.name for path in tmp_path.iterdir()] == [".x.y.tmp"]


def test_names_are_no_patterns(tmp_path):
    for name in (".a.01234567.tmp", ".[a].01234567.tmp"):
        (tmp_path / name).touch()
    check_writable(tmp_path / "[a]", "x")
    assert [path.name for path in tmp_path.iterdir()] == [".a.01234567.tmp"]


@pytest.mark.parametrize(
    ("text", "content"),
    [(None, {}), ("", {}), ('{"a": ', {}), ("[1]", {}), ("\udcff", {}), ('{"a": "ξ"}', {"a": "ξ"})],
)
def test_what_is_no_json_object_is_an_empty_one(tmp_path, text, content):
    if text is not None:
        (tmp_path / "x.json").write_bytes(text.encode(errors="surrogateescape"))
    assert read_json(tmp_path / "x.json") == content


@pytest.mark.parametrize(("make", "what"), [(check_writable, "file"), (make_folder, "folder")])
def test_a_dash_is_no_name_of_results(tmp_path, monkeypatch, make, what):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"^--x -: results are not written to standard output; .* name of a {what}$"):
        make(Path("-"), "--x")
    assert not list(tmp_path.iterdir())


def test_nothing_is_lost_between_its_making_and_its_lock(tmp_path):
    """Others look for what was left all the time."""
    ended = threading.Event()

    def look():
        while not ended.is_set():
            remove_unfinished(tmp_path / "*")

    others = [threading.Thread(target=look) for _ in range(2)]
    for other in others:
        other.start()
    try:
        for number in range(300):
            write_text_atomic(tmp_path / "x", str(number))
            assert (tmp_path / "x").read_text() == str(number)
    finally:
        ended.set()
        for other in others:
            other.join()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]

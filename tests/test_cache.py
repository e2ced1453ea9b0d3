"""The cache on disk keeps bytes, and never an error: it may lie in strange places, fill, and be written by many."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spectra import cache

POSIX = pytest.mark.skipif(os.name != "posix", reason="permissions and owners of POSIX systems")


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SPECTRA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def files(folder):
    return sorted(path for path in folder.iterdir())


def test_what_is_written_is_read(folder):
    assert cache.read("trace", "a key") is None
    cache.write("trace", "a key", b"one")
    cache.write("trace", "another", b"")
    assert (cache.read("trace", "a key"), cache.read("trace", "another")) == (b"one", b"")
    assert cache.read("choice", "a key") is None
    cache.write("trace", "a key", b"two")
    assert cache.read("trace", "a key") == b"two"
    assert len(files(folder)) == 2


def test_keys_may_be_any_text():
    keys = ["", "ü/\0..\n", "\udcff", "x" * 100_000]
    for i, key in enumerate(keys):
        cache.write("trace", key, bytes([i]))
    assert [cache.read("trace", key) for key in keys] == [bytes([i]) for i in range(len(keys))]


def test_directory_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.directory() == tmp_path / "cache"
    monkeypatch.setenv("SPECTRA_CACHE", "~/mine")
    assert cache.directory() == tmp_path / "mine"
    monkeypatch.delenv("SPECTRA_CACHE")
    assert cache.directory() == tmp_path / "xdg" / "spectra"
    for relative in ("xdg", ""):  # which the XDG specification ignores
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        assert cache.directory() == tmp_path / ".cache" / "spectra"


def test_an_empty_variable_turns_it_off(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SPECTRA_CACHE", "")
    cache.write("trace", "a", b"one")
    assert cache.directory() is None
    assert cache.read("trace", "a") is None
    assert not list(tmp_path.iterdir())


@POSIX
def test_only_the_user_may_enter(folder):
    cache.write("trace", "a", b"one")
    assert folder.stat().st_mode & 0o777 == 0o700


@POSIX
@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_directory_that_others_may_write_to_is_refused(folder, mode):
    cache.write("trace", "a", b"one")
    folder.chmod(mode)
    assert cache.directory() is None
    assert cache.read("trace", "a") is None
    cache.write("trace", "b", b"two")
    folder.chmod(0o700)
    assert cache.read("trace", "a") == b"one"
    assert cache.read("trace", "b") is None


@POSIX
def test_a_directory_of_another_user_is_refused(folder, monkeypatch):
    cache.write("trace", "a", b"one")
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    assert cache.directory() is None
    assert cache.read("trace", "a") is None
    cache.write("trace", "b", b"two")
    assert len(files(folder)) == 1


@POSIX
def test_a_link_to_the_directory_serves_where_it_is_the_users(folder, monkeypatch, tmp_path):
    (tmp_path / "scratch").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "scratch")
    cache.write("trace", "a", b"one")
    assert cache.read("trace", "a") == b"one"
    assert len(files(tmp_path / "scratch")) == 1

    real, foreign = os.lstat, list(os.lstat(folder))
    foreign[4] += 1  # its owner
    monkeypatch.setattr(os, "lstat", lambda path: os.stat_result(foreign) if path == folder else real(path))
    assert cache.directory() is None


@POSIX
def test_an_entry_that_is_a_link_or_a_pipe_is_not_read(folder, tmp_path):
    cache.write("trace", "a", b"one")
    (file,) = files(folder)
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert cache.read("trace", "a") is None
    cache.write("trace", "a", b"two")  # in place of the link, not through it
    assert cache.read("trace", "a") == b"two"
    assert not file.is_symlink()
    assert (tmp_path / "elsewhere").read_bytes().endswith(b"one")
    file.unlink()
    os.mkfifo(file)
    assert cache.read("trace", "a") is None


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied", "swapped"])
def test_damaged_entries_are_ignored_and_replaced(folder, damage):
    cache.write("trace", "a", b"some bytes")
    cache.write("trace", "b", b"other bytes")
    first, second = files(folder)
    held = first.read_bytes()
    made = {"cut": held[:-1], "changed": held[:-1] + b"!", "emptied": b"", "swapped": second.read_bytes()}
    first.write_bytes(made[damage])
    found = {key: cache.read("trace", key) for key in ("a", "b")}
    assert sorted(x for x in found.values() if x) in ([b"some bytes"], [b"other bytes"])
    for key in found:
        cache.write("trace", key, b"new")
        assert cache.read("trace", key) == b"new"


@pytest.mark.parametrize("name", ["file", "file/below", "null\0character"])
def test_a_place_where_no_directory_can_be_is_no_error(monkeypatch, tmp_path, name):
    (tmp_path / "file").write_text("")
    if "\0" in name:  # which no environment can hold
        monkeypatch.setattr(cache, "place", lambda: Path(name))
    else:
        monkeypatch.setenv("SPECTRA_CACHE", str(tmp_path / name))
    cache.write("trace", "a", b"one")
    assert cache.directory() is None
    assert cache.read("trace", "a") is None


def test_no_home_is_no_error(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SPECTRA_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    cache.write("trace", "a", b"one")
    assert cache.directory() is None
    assert cache.read("trace", "a") is None


def test_a_full_disk_leaves_the_old_entry_and_no_rest(folder, monkeypatch):
    cache.write("trace", "a", b"one")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        cache.write("trace", "a", b"two")
        cache.write("trace", "b", b"two")
    assert cache.read("trace", "a") == b"one"
    assert cache.read("trace", "b") is None
    assert len(files(folder)) == 1


def test_the_oldest_go_first_and_use_keeps(monkeypatch):
    monkeypatch.setattr(cache, "LIMIT", 4 * 2**20)
    for i in range(4):
        cache.write("trace", str(i), bytes(2**20 - 32))
    for i in range(4):  # just at the limit
        assert cache.read("trace", str(i))
        os.utime(cache.entry("trace", str(i)), (0, 1000 + i))
    assert cache.read("trace", "0")
    cache.write("trace", "4", bytes(2**20 - 32))
    assert [i for i in range(5) if cache.read("trace", str(i)) is None] == [1]


def test_the_number_of_entries_is_bounded(folder, monkeypatch):
    monkeypatch.setattr(cache, "LIMIT", 8 * cache.LEAST)
    for i in range(20):
        cache.write("choice", str(i), b"small")
    assert len(files(folder)) == 8


def test_an_entry_near_the_limit_is_not_kept(folder, monkeypatch):
    monkeypatch.setattr(cache, "LIMIT", 2**20)
    cache.write("trace", "a", b"one")
    cache.write("trace", "large", bytes(2**20))
    assert cache.read("trace", "a") == b"one"
    assert cache.read("trace", "large") is None


def test_files_of_others_stay(folder, monkeypatch):
    """Where SPECTRA_CACHE names a directory that has other things in it."""
    folder.mkdir(mode=0o700)
    (folder / "thesis.tex").write_text("years of work")
    (folder / "trace-notes").write_text("more")
    monkeypatch.setattr(cache, "LIMIT", cache.LEAST)
    for i in range(3):
        cache.write("trace", str(i), b"small")
    assert {"thesis.tex", "trace-notes"} < {path.name for path in files(folder)}
    assert len(files(folder)) == 3


def test_what_killed_runs_have_left_counts_and_goes(folder, monkeypatch):
    cache.write("trace", "a", b"one")
    (file,) = files(folder)
    rest = folder / f".{file.name}.abcdefgh"
    rest.write_bytes(bytes(100))
    os.utime(rest, (0, 0))
    monkeypatch.setattr(cache, "LIMIT", 2 * cache.LEAST)
    cache.write("trace", "b", b"two")
    assert not rest.exists()
    assert cache.read("trace", "a") == b"one"


def test_many_writers_at_once(folder):
    """Each reader sees one of the writers' values whole."""
    script = (
        "from spectra import cache; import sys\n"
        "for i in range(60):\n"
        "    cache.write('trace', 'a', sys.argv[1].encode() * 5000)\n"
        "    found = cache.read('trace', 'a')\n"
        "    assert found is not None and len(set(found)) == 1 and len(found) == 5000, found\n"
    )
    runs = [subprocess.Popen([sys.executable, "-c", script, letter]) for letter in "ab"]
    assert [run.wait() for run in runs] == [0, 0]
    assert cache.read("trace", "a") in (b"a" * 5000, b"b" * 5000)
    assert len(files(folder)) == 1

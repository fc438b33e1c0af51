"""Files are written whole or not at all, by any number of threads and processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import mlxopt as mo
from mlxopt._platform import files
from mlxopt._platform.files import replacing

FOUND = mo.minimize(lambda x: mx.sum((x - 3.0) ** 2), mx.zeros(4), mo.LBFGS())
BOTH = pytest.mark.parametrize("nameless", [True, False], ids=["nameless", "named"])


@pytest.fixture
def system(nameless, monkeypatch):
    """A system with or without nameless files."""
    if not nameless:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    elif not hasattr(os, "O_TMPFILE"):
        pytest.skip("this system has no nameless files")


@BOTH
def test_a_file_appears_at_the_end_with_the_mode_of_new_files(system, tmp_path):
    path = tmp_path / "new"
    with replacing(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    (tmp_path / "other").write_bytes(b"")
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
    assert len(list(tmp_path.iterdir())) == 2


@BOTH
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_an_old_file_keeps_its_mode(system, tmp_path, mode):
    path = tmp_path / "old"
    path.write_bytes(b"old")
    path.chmod(mode)
    with replacing(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o7777 == mode


@BOTH
@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()], ids=repr)
def test_an_exception_leaves_the_old_file_and_no_other(system, tmp_path, error):
    path = tmp_path / "old"
    path.write_bytes(b"old")

    def half():
        with replacing(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("there", [True, False])
def test_a_symbolic_link_stays(tmp_path, there):
    (tmp_path / "runs").mkdir()
    target, link = tmp_path / "runs" / "file", tmp_path / "latest"
    if there:
        target.write_bytes(b"old")
    link.symlink_to(target)
    mo.save(link, mo.LBFGS(), FOUND.state)
    assert link.is_symlink()
    assert mo.load(target)[1].params.tolist() == FOUND.params.tolist()
    assert sorted(tmp_path.rglob("*")) == [link, tmp_path / "runs", target]


def test_folders_and_devices_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(OSError, match="regular file"):
            mo.save(path, mo.LBFGS(), FOUND.state)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        mo.save(tmp_path / "nowhere" / "file", mo.LBFGS(), FOUND.state)


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / ("n" * 255)
    mo.save(path, mo.LBFGS(), FOUND.state)
    assert mo.load(path)[0] == mo.LBFGS()


@BOTH
def test_threads_that_write_to_one_path_do_not_meet(system, tmp_path):
    path, failures = tmp_path / "state", []
    states = [FOUND.state._replace(value=float(index)) for index in range(4)]
    mo.save(path, mo.LBFGS(), states[0])

    def work(state):
        try:
            for _ in range(20):
                mo.save(path, mo.LBFGS(), state)
                assert mo.load(path)[1].value in range(4)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(state,)) for state in states]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert list(tmp_path.iterdir()) == [path]


WRITER = """
import os, sys
from mlxopt._platform.files import replacing
if sys.argv[2] == "named" and hasattr(os, "O_TMPFILE"):
    del os.O_TMPFILE
print("ready", flush=True)
while True:
    with replacing(sys.argv[1]) as file:
        for _ in range(50):
            file.write(b"x" * 1000)
            file.flush()
"""


@pytest.mark.parametrize("kind", ["nameless", "named"])
def test_killed_writers_leave_a_whole_file_and_no_parts(tmp_path, kind):
    path, rng = tmp_path / "state", np.random.default_rng(0)
    for _ in range(8):
        command = [sys.executable, "-c", WRITER, str(path), kind]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(rng.uniform(0.0, 0.05))
            child.send_signal(signal.SIGKILL)
        assert not path.exists() or path.read_bytes() == b"x" * 50_000
    with replacing(path) as file:
        file.write(b"last")
    assert list(tmp_path.iterdir()) == [path]


def test_a_part_that_is_being_written_is_no_stale_one(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    stale = tmp_path / f".0{files._ENDING}"
    stale.write_bytes(b"of a killed process")
    with replacing(tmp_path / "slow") as slow:
        slow.write(b"slow")
        assert not stale.exists()
        with replacing(tmp_path / "quick") as quick:
            quick.write(b"quick")
    assert (tmp_path / "slow").read_bytes() == b"slow"
    assert sorted(tmp_path.iterdir()) == [tmp_path / "quick", tmp_path / "slow"]


LIMITED = """
import resource, sys
import matplotlib.pyplot
from mlxopt.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))  # like a disk that is full
main()
"""


@pytest.mark.parametrize(("option", "name"), [("--out", "model.npz"), ("--plot", "fit.png")])
@pytest.mark.parametrize("old", [b"the old one", None], ids=["replaces", "new"])
def test_a_command_that_cannot_write_leaves_the_old_file(tmp_path, option, name, old):
    table, path = tmp_path / "table.csv", tmp_path / name
    x = np.linspace(0.0, 1.0, 30)
    rows = [f"{a},{b},{a + 2 * b}" for a, b in zip(x, np.sin(9 * x), strict=True)]
    table.write_text("\n".join(["a,b,y", *rows]))
    if old is not None:
        path.write_bytes(old)
    arguments = ["fit", str(table), "--target", "y", option, str(path)]
    limited = subprocess.run(
        [sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True
    )
    assert limited.returncode == 2
    assert f"{path} cannot be written: File too large." in limited.stderr
    assert "intercept" in limited.stdout
    assert sorted(tmp_path.iterdir()) == sorted([table] + [path] * (old is not None))
    assert old is None or path.read_bytes() == old
    subprocess.run([sys.executable, "-m", "mlxopt", *arguments], check=True, capture_output=True)
    assert path.read_bytes()[:4] in (b"PK\x03\x04", b"\x89PNG")
    assert sorted(tmp_path.iterdir()) == sorted([table, path])

"""Kernels are compiled where no other user can plant one; without a folder, op by op."""

import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import mlx.core as mx
import pytest

import mlxopt as mo
from mlxopt._platform import compiler

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or mx.default_device() != mx.cpu or shutil.which("g++") is None,
    reason="MLX calls g++ on Linux CPUs only",
)
ROOT = str(Path(mo.__file__).parents[1])
# A number of its own in the function, so that its kernel was not compiled by another run.
RUN = """
import sys, mlx.core as mx, mlxopt as mo
number = float(sys.argv[1])
def loss(w):
    return mx.sum(mx.square(mx.tanh(w) - number))
slope = mo.grad(loss)(mx.zeros(3))
assert abs(slope + 2 * number).max().item() < 1e-6, slope
fused = mx.compile(lambda w: mx.square(mx.tanh(w) - number) * 1.25)(mx.zeros(3))
assert abs(fused - 1.25 * number**2).max().item() < 1e-6, fused
try:
    mo.grad(lambda w: loss(w) * float(mx.sum(w)))(mx.ones(3))
except mo.TapeError:
    print("done")
"""
FIT = """
w = mo.minimize(loss, mx.zeros(3), mo.LBFGS()).params
assert abs(mx.tanh(w) - number).max().item() < 1e-4, w
"""


def run(folder, *, cache="/proc", code=RUN, **environment):
    """Run code in a process of its own; return (what it printed, its warnings)."""
    number = int(uuid.uuid4()) % 10**6 / 2e6
    paths = [ROOT, os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "TMPDIR": str(folder), "XDG_CACHE_HOME": str(cache), **environment}
    env |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    # Without the last folder to try, and without the precompiled header, which takes a second.
    begin = "from mlxopt._platform import compiler\ncompiler._SHARED = compiler._HEADER = '/proc'\n"
    found = subprocess.run(
        [sys.executable, "-c", begin + code, str(number)],
        env=env,
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip(), found.stderr.count("UserWarning"), found.stderr


def kernels(folder):
    return list(Path(folder).rglob("*.so"))


def private(folder):
    os.chmod(folder, 0o700)
    return folder


def missing(path):
    return path / "nowhere"


def open_to_the_group(path):
    part = path / "mlx"
    part.mkdir()
    part.chmod(0o775)
    return path


def open_to_all(path):
    part = compiler.kernel_folder(str(path))
    part.mkdir(parents=True)
    part.chmod(0o777)
    return path


def a_link(path):
    (path / "elsewhere").mkdir()
    (path / "mlx").symlink_to(path / "elsewhere")
    return path


def a_file(path):
    (path / "mlx").write_text("")
    return path


def without_sticky_bit(path):
    path.chmod(0o777)
    return path


def read_only(path):
    return Path("/proc")


UNSAFE = [missing, open_to_the_group, open_to_all, a_link, a_file, without_sticky_bit, read_only]


def test_a_folder_of_ones_own_is_used_and_nothing_said(tmp_path):
    out, warnings, _ = run(private(tmp_path), code=RUN + FIT)
    assert (out, warnings) == ("done", 0)
    assert kernels(tmp_path)
    folder = compiler.kernel_folder(str(tmp_path))
    for part in (folder, *folder.parents[:2]):
        assert part.stat().st_mode & 0o077 == 0, part


def test_a_shared_folder_with_a_sticky_bit_is_used(tmp_path):
    tmp_path.chmod(0o1777)
    assert run(tmp_path)[:2] == ("done", 0)
    assert kernels(tmp_path)


@pytest.mark.parametrize("spoil", UNSAFE, ids=lambda spoil: spoil.__name__)
def test_another_folder_is_used_with_one_warning(spoil, tmp_path):
    (tmp_path / "temporary").mkdir()
    (tmp_path / "cache").mkdir()
    folder = spoil(tmp_path / "temporary")
    out, warnings, text = run(folder, cache=tmp_path / "cache")
    assert (out, warnings) == ("done", 1)
    assert f"compiles its kernels in {tmp_path}/cache/mlxopt, since" in text
    assert "TMPDIR" in text
    assert kernels(tmp_path / "cache")
    assert not kernels(tmp_path / "temporary")
    assert (tmp_path / "cache" / "mlxopt").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("spoil", [a_link, read_only], ids=lambda spoil: spoil.__name__)
def test_without_any_folder_functions_run_op_by_op(spoil, tmp_path):
    folder = spoil(tmp_path)
    if spoil is a_link:  # else the second folder to try lies beside it
        (folder / f"mlxopt-{os.geteuid()}").write_text("")
    out, warnings, text = run(folder, code=RUN + FIT)
    assert (out, warnings) == ("done", 1)
    assert "op by op" in text
    assert not kernels(tmp_path)


def test_a_planted_library_is_not_loaded(tmp_path):
    # The kernel of a first run, replaced by a library that leaves a trace.
    tmp_path.chmod(0o1777)
    code = RUN.replace("float(sys.argv[1])", "0.25")
    run(tmp_path, code=code)
    mark = tmp_path / "planted"
    source = tmp_path / "planted.cpp"
    source.write_text(
        "#include <cstdio>\n__attribute__((constructor)) void plant() "
        f'{{ if (FILE* f = fopen("{mark}", "w")) fclose(f); }}'
    )
    library = tmp_path / "planted.so"
    subprocess.run(["g++", "-shared", "-fPIC", source, "-o", library], check=True)
    found = kernels(tmp_path / "mlx")
    assert found
    for one in found:
        shutil.copy(library, one)
    compiler.kernel_folder(str(tmp_path)).chmod(0o777)
    (tmp_path / "cache").mkdir()
    assert run(tmp_path, code=code, cache=tmp_path / "cache")[0] == "done"
    assert not mark.exists()


def test_pythons_own_temporary_files_stay_where_they_were(tmp_path):
    (tmp_path / "mlx").write_text("")
    code = RUN + "import tempfile, os; print(tempfile.gettempdir(), os.environ['TMPDIR'])"
    out, *_ = run(private(tmp_path), code=code)
    assert out == f"done\n{tmp_path} {tmp_path}"


def test_processes_that_it_starts_say_nothing_again(tmp_path):
    (tmp_path / "mlx").write_text("")
    code = f"import subprocess\n{RUN}"
    code += f"subprocess.run([sys.executable, '-c', {RUN!r}, '0.125'], check=True)"
    _, warnings, _ = run(private(tmp_path), code=code)
    assert warnings == 1


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be other users")


@needs_root
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_folder_of_another_user(depth, tmp_path):
    tmp_path.chmod(0o1777)
    folder = compiler.kernel_folder(str(tmp_path))
    folder.mkdir(parents=True)
    part = [*folder.parents[1::-1], folder][depth]
    os.chown(part, 65534, 65534)
    out, warnings, text = run(tmp_path)
    assert (out, warnings) == ("done", 1)
    assert f"{part} belongs to another user" in text
    assert kernels(tmp_path / f"mlxopt-{os.geteuid()}")
    assert not kernels(tmp_path / "mlx")


@needs_root
def test_a_full_disk(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path])
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        out, warnings, text = run(private(tmp_path))
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert (out, warnings) == ("done", 1)
    assert "no space left" in text


@needs_root
def test_a_disk_that_runs_no_programs(tmp_path):
    command = ["mount", "-t", "tmpfs", "-o", "noexec", "tmpfs", tmp_path]
    if subprocess.run(command).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        out, warnings, text = run(private(tmp_path))
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert (out, warnings) == ("done", 1)
    assert "does not allow programs" in text


def test_the_doctor_says_it(tmp_path):
    (tmp_path / "mlx").write_text("")
    code = "import sys; sys.argv[1:] = ['doctor']\nfrom mlxopt.cli import main\nmain()"
    out, *_ = run(private(tmp_path), code=code)
    text = " ".join(out.split())
    assert "is not a folder" in text
    assert "Set TMPDIR to a folder of your own" in text
    assert "Nothing to improve" not in text
    config, *_ = run(private(tmp_path), code="import mlxopt; mlxopt.show_config()")
    assert f"{tmp_path}/mlxopt-" in config

"""The precompiled header under MLX's kernels."""

import os
import shutil
import subprocess
import sys

import mlx.core as mx
import pytest

from mlxopt._platform import compiler

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or mx.default_device() != mx.cpu or shutil.which("g++") is None,
    reason="MLX calls g++ on Linux CPUs only",
)

RUN = """
import mlx.core as mx, mlxopt as mo
loss = lambda w: mx.sum(mx.square(mx.tanh(w) - 0.3) * 1.25)
print(mo.minimize(loss, mx.zeros(3), mo.LBFGS()).status.name)
"""


def run(folder, **environment):
    found = subprocess.run(
        [sys.executable, "-c", RUN],
        env={**os.environ, "TMPDIR": str(folder), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "CONVERGED"
    return sorted(folder.rglob("*.gch*")), sorted(folder.rglob("*.cpp"))


def test_kernels_are_compiled_with_the_precompiled_header(tmp_path):
    (header,), kernels = run(tmp_path)
    assert kernels
    assert header.name == "compiled_preamble.h.gch"
    include = os.path.join(os.path.dirname(mx.__file__), "include")
    command = ["g++", *compiler._FLAGS, "-H", f"-I{include}", "-shared"]
    found = subprocess.run(
        [*command, str(kernels[0]), "-o", str(tmp_path / "kernel.so")],
        capture_output=True,
        text=True,
        check=True,
    )
    # -H lists what is included: a "!" stands before a precompiled header that was used.
    assert f"! {header}" in found.stderr
    made = header.stat().st_mtime_ns
    (again,), _ = run(tmp_path)
    assert again.stat().st_mtime_ns == made


def test_a_header_that_cannot_be_made_is_done_without(tmp_path):
    # A compiler that fails on headers alone.
    fake = tmp_path / "bin" / "g++"
    fake.parent.mkdir()
    fake.write_text(
        f'#!/bin/sh\ncase "$*" in *c++-header*) exit 1;; esac\nexec {shutil.which("g++")} "$@"\n'
    )
    fake.chmod(0o755)
    headers, kernels = run(tmp_path, PATH=f"{fake.parent}{os.pathsep}{os.environ['PATH']}")
    assert kernels
    assert not headers


def test_the_folder_is_the_one_mlx_writes_to(tmp_path, monkeypatch):
    _, kernels = run(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert {kernel.parent for kernel in kernels} == {compiler.precompiled_header().parents[3]}

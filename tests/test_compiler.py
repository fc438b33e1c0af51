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
        env={**os.environ, "TMPDIR": str(folder), "MLXOPT_ENGINE": "mlx", **environment},
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
    assert {kernel.parent for kernel in kernels} == {
        compiler.kernel_folder(compiler.temporary_folder())
    }


WITHOUT = """
import mlx.core as mx, numpy as np, mlxopt as mo

def loss(p, kind, x):
    return mx.mean(mx.square(mo.special.exp(p["a"]) * x - 2.0)) + p["b"][0] ** 2

def item(p, kind, x):
    return loss(p, kind, x) * p["a"].item()

def by_numpy(p, kind, x):
    return loss(p, kind, x) + float(np.sum(np.array(p["a"])))

def branch(p, kind, x):
    return loss(p, kind, x) if p["a"] > 0 else -loss(p, kind, x)

start, data = {"a": mx.array(0.5), "b": [mx.array(1.0)]}, ("kind", np.ones(3))
for function in (item, by_numpy, branch):
    for call in (
        lambda: mo.minimize(function, start, mo.LBFGS(), *data),
        lambda: mo.minimize(function, start, mo.SGD(0.1), *data),
        lambda: mo.grad(function)(start, *data),
        lambda: mo.hessian(lambda a: function({**start, "a": a}, *data))(mx.array(0.5)),
    ):
        try:
            call()
        except mo.TapeError:
            continue
        raise AssertionError(function.__name__)
found = mo.minimize(loss, start, mo.LBFGS(), *data).params
assert abs(found["a"].item() - np.log(2)) < 1e-3 and abs(found["b"][0].item()) < 1e-3, found
print("done")
"""


@pytest.mark.parametrize("environment", [{"PATH": "/nowhere"}, {"MLX_DISABLE_COMPILE": "1"}])
def test_losses_that_leave_the_tape_are_found_without_a_compiler(environment):
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert (found.stdout, found.stderr) == ("done\n", "")

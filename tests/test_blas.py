"""The first computation binds MLX to a faster BLAS; any doubt restores the reference.

What a process does to itself is tested in a fresh one: ``run`` starts it, and fails on anything
written to stderr, warnings included.
"""

import ctypes
import os
import struct
import subprocess
import sys
import textwrap
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlxopt._platform import blas
from mlxopt._platform.elf import Elf

ROOT = Path(blas.__file__).parents[2]
SITE = Path(mx.__file__).parents[1]  # the folder that holds the packages mlx, scipy, …

# Evidence of its own, so that a broken blas.py turns these tests red and does not skip them.
REFERENCE = sorted(SITE.glob("mlx*.libs/libblas-*.so*"))
OPENBLAS = sorted(SITE.glob("scipy.libs/libscipy_openblas-*.so"))
try:
    metadata.version("mkl")
    HAS_MKL = True
except metadata.PackageNotFoundError:
    HAS_MKL = False

needs_reference = pytest.mark.skipif(
    not (sys.platform == "linux" and REFERENCE and OPENBLAS),
    reason="needs MLX's CPU wheel for Linux, with the reference BLAS, and SciPy's wheel",
)
LIBRARIES = [
    "openblas",
    pytest.param("mkl", marks=pytest.mark.skipif(not HAS_MKL, reason="mkl is not installed")),
]

# What libmlx.so's slots hold, and whose it is.
PRELUDE = """
    import os, signal, sys
    import mlx.core as mx
    import numpy as np
    from mlxopt._platform import blas

    def slots():
        regions = blas._memory_map()
        path = next(r.path for r in regions if r.path.endswith("/libmlx.so"))
        with open(path, "rb") as file:
            elf = blas.parse_elf(file.read())
        base = next(r.start for r in regions if r.path == path and r.offset == 0) - elf.start
        return {
            name: blas._word(base + address).value
            for name, addresses in elf.slots.items() if blas._BLAS_NAME.fullmatch(name)
            for address in addresses
        }

    def owners():
        regions = blas._memory_map()
        return {os.path.basename(blas._region(regions, at).path) for at in slots().values()}

    def is_reference(names):
        return all(name == "libmlx.so" or name.startswith(("libblas-", "liblapack-"))
                   for name in names)
"""
USE_MLX = """
    import mlx.core as mx
    a = mx.ones((5, 5)) + mx.eye(5)
    mx.eval(a @ a, mx.linalg.qr(a, stream=mx.cpu))
"""


def run(*parts: str, **env: str) -> str:
    """What a fresh Python prints; it has one BLAS thread unless ``env`` says otherwise."""
    code = "\n".join(textwrap.dedent(part) for part in parts)
    settings = {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-W", "default", "-c", code],
        env={k: v for k, v in os.environ.items() if k != "MLXOPT_BLAS"} | settings | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stderr + result.stdout
    return result.stdout.strip()


# --- Binding -------------------------------------------------------------------------------------


@needs_reference
def test_the_import_binds_nothing_and_the_first_computation_does() -> None:
    check = """
        from mlxopt import *
        assert is_reference(owners()), owners()
        grad(lambda w: mx.sum(w * w))(mx.ones(3))
        assert not is_reference(owners())
        print(blas.binding().library)
    """
    assert run(PRELUDE, check) != "None"


@needs_reference
def test_every_computation_binds_first() -> None:
    check = """
        import mlxopt as mo
        X, y, w = mx.random.normal((20, 3)), mx.random.normal((20,)), mx.zeros(3)
        residual = lambda w, X, y: X @ w - y
        loss = lambda w, X, y: mx.mean(mx.square(residual(w, X, y)))
        losses = lambda w, X, y: mx.square(residual(w, X, y))
        start, rule, lbfgs = mx.ones(3), mo.SGD(0.1), mo.LBFGS()
        starts, axes = mx.stack([w, start]), (0, None, None)
        best = mx.array(np.linalg.lstsq(np.array(X), np.array(y))[0])
        matrix = mx.matmul(X.T, X, stream=mx.cpu)
        many = mx.stack([matrix, matrix])
        computations = {
            "minimize": lambda: mo.minimize(loss, w, lbfgs, X, y),
            "train": lambda: mo.train(loss, w, rule, mo.batches(X, y, batch_size=5), epochs=1),
            "least_squares": lambda: mo.least_squares(residual, w, X, y),
            "minimize_many": lambda: mo.minimize_many(loss, starts, lbfgs, X, y, in_axes=axes),
            "argmin": lambda: mo.argmin(loss, lbfgs)(w, X, y),
            "covariance": lambda: mo.inference.covariance(losses, best, X, y),
            "grad": lambda: mo.grad(loss)(w, X, y),
            "unproven grad": lambda: mo.grad(loss, compile=False)(w, X, y),
            "compiled grad": lambda: mx.compile(mo.grad(loss))(w, X, y),
            "hessian": lambda: mo.hessian(loss)(w, X, y),
            "hvp": lambda: mo.hvp(loss)(w, start, X, y),
            "jacobian": lambda: mo.jacobian(residual)(w, X, y),
            "per_example_grad": lambda: mo.per_example_grad(loss)(w, X, y),
            "check_grads": lambda: mo.check_grads(loss, w, X, y),
            "show_config": mo.show_config,
            "check_optimizer": lambda: mo.testing.check_optimizer(rule),
            "grad of cholesky": lambda: mx.grad(lambda a: mo.linalg.cholesky(a).sum())(matrix),
            "vmap of cholesky": lambda: mx.vmap(mo.linalg.cholesky)(many),
        }
        for name in mo.linalg.__all__[1:]:
            function = getattr(mo.linalg, name)
            args = [X, y] if name == "lstsq" else [matrix, w] if "solve" in name else [matrix]
            computations[name] = lambda function=function, args=args: function(*args)
        for name, compute in computations.items():
            blas.unbind()
            blas._current = None  # as in a new process
            blas.start.cache_clear()
            assert is_reference(owners()), owners()
            compute()
            assert not is_reference(owners()), name
        blas.unbind()
        compute()
        assert is_reference(owners()), "unbind was overruled"
        print("computations:", len(computations))
    """
    last = run(PRELUDE, check, MLXOPT_BLAS="openblas").splitlines()[-1]
    assert int(last.removeprefix("computations: ")) > 20


@needs_reference
def test_threads_that_compute_first_bind_once() -> None:
    check = """
        import threading
        import mlxopt as mo
        calls, bind, ready, right = [], blas._bind, threading.Barrier(4), []
        blas._bind = lambda: (calls.append(1), bind())[1]

        def work():
            a = mx.array(np.eye(50) + 1, mx.float64)
            ready.wait()
            x = mo.linalg.solve(a, mx.ones(50, mx.float64))
            right.append(np.allclose(np.array(a) @ np.array(x), 1) and not is_reference(owners()))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(len(calls), right)
    """
    expected = "1 [True, True, True, True]"
    assert run(PRELUDE, check, MLXOPT_BLAS="openblas") == expected


@needs_reference
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("before", [USE_MLX, ""], ids=["mlx was used", "mlx is new"])
def test_every_symbol_is_taken_from_the_fast_library(library: str, before: str) -> None:
    check = """
        result = blas.bind()
        assert result.path is not None, result.reason
        assert owners() == {os.path.basename(result.path)}, owners()
        assert result.symbols == len(slots()) > 20
        assert blas.bind() is result and blas.binding() is result
        assert result.seconds > 0
        print(result.library, "|", result.reason)
    """
    name = {"openblas": "OpenBLAS (SciPy)", "mkl": "MKL"}[library]
    assert run(before, PRELUDE, check, MLXOPT_BLAS=library) == f"{name} | MLX calls {name}."


@needs_reference
@pytest.mark.parametrize("library", [*LIBRARIES, "none"])
def test_results_equal_numpy(library: str) -> None:
    """The reference ("none") meets the same tolerances, so they ask for nothing extraordinary."""
    check = """
        blas.bind()
        rng = np.random.default_rng(0)
        m, n = 200, 150  # large enough for several threads and for blocked code
        for kind in (mx.float32, mx.float64):
            def near(got, wanted, factor=1.0):
                got, wanted = np.array(got), np.asarray(wanted)
                assert got.dtype == eps.dtype, got.dtype
                error = np.abs(got - wanted).max() / np.abs(wanted).max()
                assert error <= 30 * factor * np.sqrt(m) * eps, (kind, error / eps)

            A, B = mx.array(rng.normal(size=(m, n)), kind), mx.array(rng.normal(size=(n, m)), kind)
            x = mx.array(rng.normal(size=n), kind)
            S = mx.array(rng.normal(size=(n, n)), kind)
            S = mx.matmul(S, S.T, stream=mx.cpu) / n + mx.eye(n, dtype=kind, stream=mx.cpu)
            a, b, s, v = (np.array(z) for z in (A, B, S, x))
            eps = np.finfo(a.dtype).eps
            with mx.stream(mx.cpu):
                near(A @ B, a @ b)
                near(B.T @ A.T, b.T @ a.T)
                near(A @ x, a @ v)
                near(A.T @ mx.ones(m, kind), a.sum(0))
                batch = mx.stack([S, 2 * S]) @ mx.stack([B, B])
                near(batch, np.stack([s @ b, 2 * s @ b]))
                near(mx.addmm(A @ S, A, S, alpha=2.0, beta=-1.0), a @ s)
                q, r = (np.array(z) for z in mx.linalg.qr(A))
                near(q @ r, a)
                near(q.T @ q, np.eye(n))
                near(np.abs(r), np.abs(np.linalg.qr(a)[1]), 10)
                values, vectors = (np.array(z) for z in mx.linalg.eigh(S))
                near(values, np.linalg.eigvalsh(s))
                near(vectors * values @ vectors.T, s)
                near(mx.linalg.cholesky(S), np.linalg.cholesky(s), 10)
                near(mx.linalg.solve(S, B), np.linalg.solve(s, b), 10)
                near(mx.linalg.inv(S), np.linalg.inv(s), 10)
                u, sigma, vt = (np.array(z) for z in mx.linalg.svd(A))
                near(sigma, np.linalg.svd(a, compute_uv=False))
                near(u[:, :n] * sigma @ vt, a)
        print("equal")
    """
    threads = {"OPENBLAS_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    assert run(PRELUDE, check, MLXOPT_BLAS=library, **threads) == "equal"


@needs_reference
@pytest.mark.parametrize("library", LIBRARIES)
def test_unbind_puts_back_what_was_there_and_bind_starts_afresh(library: str) -> None:
    check = f"""
        before = slots()
        assert is_reference(owners()), owners()
        blas.unbind()
        os.environ["MLXOPT_BLAS"] = {library!r}
        first = blas.bind()
        assert not set(slots().values()) & set(before.values())
        blas.unbind()
        assert slots() == before
        assert blas.binding().library is None
        again = blas.bind()
        assert again is not first and again.library == first.library, again
        assert owners() == {{os.path.basename(again.path)}}
        print("ok")
    """
    assert run(PRELUDE, check, MLXOPT_BLAS="none") == "ok"


# --- What is chosen ------------------------------------------------------------------------------


@needs_reference
def test_auto_prefers_mkl_and_settles_for_openblas() -> None:
    expected = "MKL" if HAS_MKL else "OpenBLAS (SciPy)"
    assert run(PRELUDE, "print(blas.bind().library)", MLXOPT_BLAS="auto") == expected
    no_mkl = "blas.unbind(); blas._KNOWN['mkl'] = ('MKL', lambda: None, 'no MKL'); "
    assert run(PRELUDE, no_mkl + "print(blas.bind().library)") == "OpenBLAS (SciPy)"


@needs_reference
def test_a_file_may_be_named() -> None:
    check = "b = blas.bind(); print(b.library, b.symbols == len(slots()), b.path)"
    assert run(PRELUDE, check, MLXOPT_BLAS=str(OPENBLAS[0])) == f"OpenBLAS True {OPENBLAS[0]}"


@needs_reference
@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("none", "MLXOPT_BLAS=none asks"),
        ("openblass", "There is no file 'openblass'"),
        ("/no/such/file.so", "There is no file '/no/such/file.so'"),
        (__file__, "invalid ELF header"),
        (str(next(SITE.glob("mlx*.libs/libgfortran*"), "")), "it has no isamax_"),
        (str(next(SITE.glob("numpy.libs/*openblas64_*.so"), "")), "it has no isamax_"),
    ],
    ids=["none", "misspelled", "missing", "not a library", "not a BLAS", "64-bit integers"],
)
def test_a_bad_choice_leaves_mlx_alone_and_says_so(setting: str, reason: str) -> None:
    check = """
        result = blas.bind()
        assert (result.library, result.path, result.symbols) == (None, None, 0)
        assert is_reference(owners())
        print(result.reason)
    """
    assert reason in run(PRELUDE, check, MLXOPT_BLAS=setting)


@needs_reference
def test_scipy_is_found_without_being_imported() -> None:
    check = """
        import sys, mlxopt
        from mlxopt._platform import blas
        print(blas.binding().library, "scipy" in sys.modules)
    """
    assert run(check, MLXOPT_BLAS="openblas") == "OpenBLAS (SciPy) False"


@needs_reference
def test_thread_limits_are_honored() -> None:
    check = """
        import ctypes
        print(ctypes.CDLL(blas.bind().path).scipy_openblas_get_num_threads())
    """
    for threads in ("1", "2"):
        got = run(PRELUDE, check, MLXOPT_BLAS="openblas", OPENBLAS_NUM_THREADS=threads)
        assert got == str(min(int(threads), os.cpu_count() or 1))


# --- Doubt puts everything back ------------------------------------------------------------------


@needs_reference
@pytest.mark.parametrize("used", [True, False], ids=["mlx was used", "mlx is new"])
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        # getpid takes any arguments and writes nothing: the output stays as it was allocated.
        ("wrong['scipy_cblas_sgemm'] = getpid", "a matrix product in float32"),
        ("wrong['scipy_cblas_dgemm'] = getpid", "a matrix product in float64"),
        ("spoil('scipy_dgeqrf_', 8, 2, f64, 0.01)", "a QR factorization in float64"),
        ("spoil('scipy_sorgqr_', 9, 3, f32, 0.01)", "a QR factorization in float32"),
        ("spoil('scipy_ssyevd_', 11, 5, f32, 0.01)", "the eigenvalues of a matrix in float32"),
        ("spoil('scipy_ssyevd_', 11, 3, f32, 0.01)", "the eigenvectors of a matrix in float32"),
        ("spoil('scipy_dsyevd_', 11, 5, f64, np.nan)", "the eigenvalues of a matrix in float64"),
        ("np.finfo = None", "OpenBLAS (SciPy) was not used: 'NoneType' object"),
        ("mx.new_stream = None", "OpenBLAS (SciPy) was not used: 'NoneType' object"),
        ("blas._is_lp64 = lambda *_: False", "its integers have 64 bits"),
    ],
)
def test_a_failed_check_restores_every_slot(fault: str, reason: str, used: bool) -> None:
    check = f"""
        import ctypes
        before = slots()
        getpid = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value
        look_up, wrong, written = blas._address, {{}}, []
        blas._address = lambda library, name: wrong.get(name) or look_up(library, name)
        f32, f64, kept = ctypes.c_float, ctypes.c_double, []

        def spoil(name, inputs, output, number, error):
            "Let a function add an error to the first number of one of its outputs."
            signature = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * inputs)
            real = signature(look_up(ctypes.CDLL(blas._openblas_file()), name))

            def function(*args):
                real(*args)
                if args[output]:  # a null pointer in a call that asks how much memory is needed
                    number.from_address(args[output]).value += error

            kept.append(signature(function))
            wrong[name] = ctypes.cast(kept[0], ctypes.c_void_p).value

        restore = blas._restore
        blas.unbind()
        blas._restore = lambda: (written.append(owners()), restore())
        os.environ["MLXOPT_BLAS"] = "openblas"
        {fault}
        result = blas.bind()
        assert result.library is None, result
        if "is_lp64" in {fault!r}:
            assert not written
        else:
            assert "libscipy_openblas" in " ".join(written[0]), written
        assert slots() == before
        print(result.reason)
    """
    start = USE_MLX if used else ""
    assert reason in run(start, PRELUDE, check, MLXOPT_BLAS="none")


@needs_reference
@pytest.mark.parametrize("broken", ["_survey", "_memory_map", "parse_elf"])
def test_an_unexpected_error_stays_inside(broken: str) -> None:
    check = f"""
        os.environ["MLXOPT_BLAS"] = "openblas"
        before = slots()
        blas.unbind()
        real = blas.{broken}
        blas.{broken} = lambda *args, **options: 1 / 0
        result = blas.bind()
        blas.{broken} = real
        assert result.library is None and slots() == before
        print(result.reason)
    """
    expected = "MLX was left alone after ZeroDivisionError: division by zero"
    assert run(PRELUDE, check, MLXOPT_BLAS="none") == expected


@needs_reference
def test_whatever_is_unfamiliar_is_left_alone() -> None:
    check = """
        os.environ["MLXOPT_BLAS"] = "openblas"
        parse_elf, memory_map = blas.parse_elf, blas._memory_map

        def elf(**changes):
            return blas, "parse_elf", lambda data: parse_elf(data)._replace(**changes)

        def maps(**changes):
            def changed(region):
                new = {key: change(getattr(region, key)) for key, change in changes.items()}
                return region._replace(**new)
            return blas, "_memory_map", lambda: [changed(region) for region in memory_map()]

        def moved(old, new):
            return maps(path=lambda path: path.replace(old, new))

        cases = [
            ("does not use the reference BLAS", *elf(needed=("libopenblas.so.0", "libc.so.6"))),
            ("does not use the reference BLAS", *elf(needed=("libblas64.so.3",))),
            ("does not use the reference BLAS", *elf(needed=())),
            ("imports no BLAS function", *elf(slots={"malloc": (8,)})),
            ("signs its function pointers", *elf(signed=True)),
            ("read-only (RELRO)", *maps(mode=lambda mode: mode.replace("w", "-"))),
            ("0 files named libmlx.so", *moved("libmlx.so", "libmlx.so (deleted)")),
            ("2 files named libmlx.so", *maps(path=lambda path: path or "/other/libmlx.so")),
            ("MLX takes", *moved("libblas-", "libopenblas-")),
            ("MLX takes", *moved(FOLDER, "openblas-pthread")),
            ("MLX takes", *maps(mode=lambda mode: mode.replace("x", "-"))),
            ("not glibc", os, "confstr", lambda name: None),
            ("on this platform", sys, "platform", "darwin"),
            ("too old", mx, "new_thread_local_stream", None),
        ]
        for reason, owner, name, value in cases:
            real = getattr(owner, name)
            delattr(owner, name) if value is None else setattr(owner, name, value)
            blas.unbind()
            result = blas.bind()
            setattr(owner, name, real)
            assert (result.library, result.symbols) == (None, 0), (reason, result)
            assert reason in result.reason, (reason, result)
            assert is_reference(owners())
        blas.unbind()
        print(blas.bind().library)  # it was only that
    """
    folder = f"FOLDER = {REFERENCE[0].parent.name!r}"
    assert run(PRELUDE, folder, check, MLXOPT_BLAS="none") == "OpenBLAS (SciPy)"


@needs_reference
def test_a_build_for_cuda_is_bound_only_when_asked() -> None:
    check = """
        parse_elf = blas.parse_elf
        cuda = ("libcuda.so.1", "libblas.so.3")
        blas.parse_elf = lambda data: parse_elf(data)._replace(needed=cuda)
        for choice in ("auto", "openblas"):
            blas.unbind()
            os.environ["MLXOPT_BLAS"] = choice
            print(blas.bind().library, end=" ")
    """
    assert run(PRELUDE, check, MLXOPT_BLAS="none") == "None OpenBLAS (SciPy)"


# --- The rest of the process ---------------------------------------------------------------------


@needs_reference
@pytest.mark.parametrize("library", LIBRARIES)
def test_numpy_and_scipy_keep_their_own(library: str) -> None:
    check = """
        import scipy.linalg.blas, scipy.linalg._flapack, numpy.linalg
        np.ones((9, 9)) @ np.ones((9, 9)), scipy.linalg.blas.dgemm(1.0, np.eye(3), np.eye(3))
        blas.bind()
        a = np.cos(np.arange(81.0) ** 1.5).reshape(9, 9)
        a @ a, np.linalg.qr(a), scipy.linalg.blas.dgemm(1.0, a, a), scipy.linalg.svd(a)
        regions = blas._memory_map()
        for part, own in {"_multiarray_umath": "openblas64_", "_umath_linalg": "openblas64_",
                          "_fblas": "libscipy_openblas-", "_flapack": "libscipy_openblas-"}.items():
            first = next(r for r in regions if part in r.path and r.offset == 0)
            with open(first.path, "rb") as file:
                elf = blas.parse_elf(file.read())
            seen = {
                os.path.basename(blas._region(regions, blas._word(first.start + at).value).path)
                for name, addresses in elf.slots.items() if name.startswith("scipy_")
                for at in addresses
            }
            assert seen and all(own in name or part in name for name in seen), (part, seen)
        print("ok")
    """
    assert run(PRELUDE, check, MLXOPT_BLAS=library) == "ok"


@needs_reference
def test_openblas_adds_no_names_to_the_process() -> None:
    check = """
        import ctypes
        blas.bind()
        everyone = ctypes.CDLL(None)
        print([n for n in ("cblas_sgemm", "dgemm_", "scipy_cblas_sgemm") if hasattr(everyone, n)])
    """
    assert run(PRELUDE, check, MLXOPT_BLAS="openblas") == "[]"


@needs_reference
def test_streams_devices_and_random_numbers_are_as_before() -> None:
    look = """
        import mlx.core as mx
        mx.random.seed(7)
        def look():
            with mx.stream(mx.cpu):
                number = mx.random.normal().item()  # of a generator seeded before the binding
            return mx.default_device(), mx.default_stream(mx.cpu), number
    """
    alone = run(look, "print(look())")
    assert run(look, "from mlxopt._platform import blas; blas.bind(); print(look())") == alone


@needs_reference
@pytest.mark.parametrize("library", LIBRARIES)
def test_streams_may_call_at_the_same_time(library: str) -> None:
    check = """
        import threading, time
        blas.bind()
        a = np.cos(np.arange(150.0 * 150) ** 1.3).reshape(150, 150)
        product, gram = a @ a, a @ a.T + 150 * np.eye(150)
        failures, stop = [], time.monotonic() + 1.0

        def work():
            stream = mx.new_stream(mx.cpu)
            x, s = mx.array(a, mx.float64), mx.array(gram, mx.float64)
            while time.monotonic() < stop and not failures:
                y, low = mx.matmul(x, x, stream=stream), mx.linalg.cholesky(s, stream=stream)
                q, r = mx.linalg.qr(x, stream=stream)
                mx.eval(y, low, q, r)
                y, low, q, r = (np.array(z) for z in (y, low, q, r))
                errors = [y - product, (low @ low.T - gram) / 150, q @ r - a]
                if not max(np.abs(e).max() for e in errors) < 1e-11:
                    failures.append([np.abs(e).max() for e in errors])

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(failures)
    """
    threads = {"OPENBLAS_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    assert run(PRELUDE, check, MLXOPT_BLAS=library, **threads) == "[]"


@needs_reference
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_forked_process_can_use_mlx(library: str) -> None:
    check = """
        import warnings
        warnings.simplefilter("ignore")  # Python 3.12 warns of fork beside threads
        blas.bind()
        process = os.fork()
        if process == 0:
            signal.alarm(60)
            a = mx.ones((300, 300))
            right = mx.all(mx.matmul(a, a, stream=mx.cpu) == 300, stream=mx.cpu).item()
            q, r = mx.linalg.qr(a + mx.eye(300), stream=mx.cpu)
            mx.eval(q, r)
            os._exit(0 if right else 1)
        assert os.waitpid(process, 0)[1] == 0
        a = mx.ones((300, 300))
        print(mx.all(mx.matmul(a, a, stream=mx.cpu) == 300, stream=mx.cpu).item())
    """
    threads = {"OPENBLAS_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    assert run(PRELUDE, check, MLXOPT_BLAS=library, **threads) == "True"


@needs_reference
def test_a_spawned_process_binds_too() -> None:
    check = """
        import multiprocessing
        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.apply(blas.bind).library)
    """
    assert run(PRELUDE, check, MLXOPT_BLAS="openblas") == "OpenBLAS (SciPy)"


# --- The width of integers, and MKL's conditions -------------------------------------------------


def test_the_probe_tells_32_bit_integers_from_64_bit_ones() -> None:
    seen = []

    def isamax(integer: type) -> object:
        @ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 3)
        def function(length: int, numbers: int, step: int) -> int:
            n = integer.from_address(length).value  # type: ignore[attr-defined]
            seen.append(n)
            values = (ctypes.c_float * max(n, 0)).from_address(numbers)
            return int(np.argmax(values)) + 1 if n > 0 else 0

        return function

    narrow, wide = {"isamax_": isamax(ctypes.c_int32)}, {"x_isamax_": isamax(ctypes.c_int64)}
    assert blas._is_lp64(narrow, "")  # type: ignore[arg-type]
    assert not blas._is_lp64(wide, "x_")  # type: ignore[arg-type]
    assert seen[0] == 2
    assert seen[1] < 0  # so that nothing is read


@pytest.fixture
def mkl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of an MKL whose files are all there, and empty."""
    for name in ("MKL_INTERFACE_LAYER", "MKL_THREADING_LAYER", "LD_BIND_NOW"):
        monkeypatch.delenv(name, raising=False)
    for part in ("rt", "core", "intel_lp64", "intel_thread", "tbb_thread", "sequential"):
        (tmp_path / f"libmkl_{part}.so.3").touch()
    (tmp_path / "libiomp5.so").touch()
    monkeypatch.setattr(blas, "_memory_map", lambda: [])
    return str(tmp_path / "libmkl_rt.so.3")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("MKL_INTERFACE_LAYER", "ILP64", "MKL_INTERFACE_LAYER"),
        ("MKL_INTERFACE_LAYER", "GNU,ILP64", "MKL_INTERFACE_LAYER"),
        ("MKL_THREADING_LAYER", "PGI", "unknown"),
        ("MKL_THREADING_LAYER", "GNU", "libmkl_gnu_thread is missing"),
        ("LD_BIND_NOW", "1", "LD_BIND_NOW"),
    ],
)
def test_mkl_is_refused_where_it_would_end_the_process(
    mkl: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(blas.Unfit, match=reason):
        blas._prepare_mkl(mkl)


def test_mkl_needs_its_files(mkl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="libiomp5"):  # which is empty here: no library
        blas._prepare_mkl(mkl)
    monkeypatch.setenv("MKL_THREADING_LAYER", "sequential")
    blas._prepare_mkl(mkl)  # needs no runtime
    Path(mkl).with_name("libmkl_core.so.3").unlink()
    with pytest.raises(blas.Unfit, match="libmkl_core is missing"):
        blas._prepare_mkl(mkl)


@pytest.mark.parametrize("name", ["libiomp5.so", "libiomp5-a1b2.so", "libomp.so.5", "libomp-1.so"])
def test_mkl_is_refused_beside_another_openmp_of_its_family(
    mkl: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    region = blas._Region(0, 1, "r-xp", 0, f"/elsewhere/{name}")
    monkeypatch.setattr(blas, "_memory_map", lambda: [region])
    with pytest.raises(blas.Unfit, match="another OpenMP runtime"):
        blas._prepare_mkl(mkl)
    own = region._replace(path=str(Path(mkl).with_name("libiomp5.so")))
    gnu = region._replace(path="/elsewhere/libgomp.so.1")
    monkeypatch.setattr(blas, "_memory_map", lambda: [own, gnu])
    with pytest.raises(OSError, match="libiomp5"):  # as far as loading its own
        blas._prepare_mkl(mkl)


# --- Reading ELF files ---------------------------------------------------------------------------

GLOB_DAT, JUMP_SLOT, RELATIVE = (
    {62: 6, 183: 1025},
    {62: 7, 183: 1026},
    {62: 8, 183: 1027},
)
BASE, SHIFT = 0x10000, 0x3000  # where the file begins in memory; how far its data is moved


def make_elf(machine: int, *, dynamic_tags: tuple[tuple[int, int], ...] = ()) -> bytes:
    """The smallest library with a text segment, and a data segment moved by SHIFT."""
    names = [b"", b"cblas_sgemm", b"dgemm_", b"own_", b"libblas.so.3", b"libc.so.6"]
    strings = b"\0".join(names) + b"\0"
    at = [strings.index(name + b"\0") for name in names]
    at[0] = 0
    header, strtab = 64 + 4 * 56, 0x200
    symtab, rela, plt, dynamic = 0x300, 0x400, 0x500, 0x600
    address = {offset: BASE + offset + SHIFT for offset in (strtab, symtab, rela, plt, dynamic)}

    symbol = struct.Struct("<IBBHQQ")
    symbols = [(0, 0, 0, 0, 0, 0), (at[1], 18, 0, 0, 0, 0), (at[2], 18, 0, 0, 0, 0)]
    symbols += [(at[3], 18, 0, 7, BASE, 16)]  # defined in section 7
    relocation = struct.Struct("<QQq")

    def link(slot: int, index: int, kind: int) -> bytes:
        return relocation.pack(slot, index << 32 | kind, 0)

    rela_rows = link(0x9000, 1, GLOB_DAT[machine]) + link(0x9008, 0, RELATIVE[machine])
    rela_rows += link(0x9010, 2, 1)  # R_X86_64_64 and its like: a pointer in a table, no slot
    plt_rows = link(0x9100, 1, JUMP_SLOT[machine]) + link(0x9108, 2, JUMP_SLOT[machine])
    plt_rows += link(0x9110, 3, JUMP_SLOT[machine])
    entries = [(1, at[4]), (1, at[5]), (5, address[strtab]), (10, len(strings))]
    entries += [(6, address[symtab]), (11, 24), (7, address[rela]), (8, len(rela_rows))]
    entries += [(23, address[plt]), (2, len(plt_rows)), (20, 7), *dynamic_tags, (0, 0)]
    entries += [(1, 0xDEAD)]  # beyond the end
    rows = b"".join(struct.pack("<QQ", *entry) for entry in entries)

    out = bytearray(0x800)
    out[:64] = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 3, machine, 1, 0, 64, 0, 0, 64, 56, 4, 0, 0, 0
    )
    segment = struct.Struct("<IIQQQQQQ")
    segments = [
        segment.pack(0x6474E551, 6, 0, 0, 0, 0, 0, 16),  # GNU_STACK
        segment.pack(1, 5, 0, BASE, BASE, header, header, 0x1000),
        segment.pack(1, 6, strtab, address[strtab], 0, 0x600, 0x900, 0x1000),
        segment.pack(2, 6, dynamic, address[dynamic], 0, len(rows), len(rows), 8),
    ]
    out[64:header] = b"".join(segments)
    for offset, content in (
        (strtab, strings),
        (symtab, b"".join(symbol.pack(*row) for row in symbols)),
        (rela, rela_rows),
        (plt, plt_rows),
        (dynamic, rows),
    ):
        out[offset : offset + len(content)] = content
    return bytes(out)


@pytest.mark.parametrize("machine", [62, 183], ids=["x86-64", "aarch64"])
def test_slots_and_needs_are_read_from_an_elf_file(machine: int) -> None:
    elf = blas.parse_elf(make_elf(machine))
    assert elf == Elf(
        machine=machine,
        start=BASE,
        needed=("libblas.so.3", "libc.so.6"),
        slots={"cblas_sgemm": (0x9000, 0x9100), "dgemm_": (0x9108,)},
        signed=False,
    )
    assert blas.parse_elf(memoryview(make_elf(machine))) == elf


def test_signed_pointers_are_noticed() -> None:
    assert blas.parse_elf(make_elf(183, dynamic_tags=((0x70000003, 0),))).signed


@pytest.mark.parametrize(
    ("place", "content", "reason"),
    [
        (0, b"MZ", "64-bit little-endian"),
        (4, b"\x01", "64-bit little-endian"),  # 32 bits
        (5, b"\x02", "64-bit little-endian"),  # big-endian
        (18, b"\x28", "neither x86-64 nor aarch64"),
        (64 + 3 * 56, b"\x04", "no dynamic section"),
        (64 + 2 * 56, b"\x04", "outside the file"),
    ],
)
def test_a_strange_file_is_refused(place: int, content: bytes, reason: str) -> None:
    data = bytearray(make_elf(62))
    data[place : place + len(content)] = content
    with pytest.raises(blas.Unfit, match=reason):
        blas.parse_elf(bytes(data))


@pytest.mark.parametrize("length", [0, 30, 100, 0x210, 0x310, 0x410, 0x510, 0x610])
def test_a_truncated_file_is_an_error_and_no_half_answer(length: int) -> None:
    with pytest.raises((blas.Unfit, ValueError, struct.error)):
        blas.parse_elf(make_elf(183)[:length])


# --- Names ---------------------------------------------------------------------------------------


def test_which_names_are_taken_for_blas() -> None:
    for name in ("cblas_sgemm", "cblas_cgemm", "sgeqrf_", "dpotrf_", "zheevd_", "isamax_", "ddot_"):
        assert blas._BLAS_NAME.fullmatch(name), name
    # Not BLAS; or a function that returns a complex number, where compilers disagree.
    for name in ("malloc", "__gmon_start__", "_ZdlPv", "cdotc_", "zdotu_", "cladiv_", "xerbla_"):
        assert not blas._BLAS_NAME.fullmatch(name), name


@pytest.mark.parametrize(
    ("path", "reference"),
    [
        ("libblas-bd8a282c.so.3.10.0", True),
        ("liblapack.so.3", True),
        ("libcblas.so.3", True),
        ("/usr/lib/x86_64-linux-gnu/blas/libblas.so.3.11.0", True),
        ("/home/someone/openblas-tests/venv/lib/mlx_cpu.libs/libblas-bd8a282c.so.3.10.0", True),
        ("libblas64.so.3", False),
        ("libopenblas.so.0", False),
        ("/usr/lib/x86_64-linux-gnu/openblas-pthread/libblas.so.3", False),
        ("/usr/lib/x86_64-linux-gnu/blis-openmp/libblas.so.4", False),
        ("libmkl_rt.so.2", False),
        ("", False),
    ],
)
def test_which_files_are_the_reference(path: str, reference: bool) -> None:
    assert blas._is_reference(path) is reference


def test_scipy_is_where_the_tests_look() -> None:
    """Or the tests above would be skipped in silence."""
    spec = find_spec("scipy")
    assert spec is not None
    assert spec.origin is not None
    if sys.platform == "linux" and REFERENCE:
        assert Path(spec.origin).parents[1] == SITE

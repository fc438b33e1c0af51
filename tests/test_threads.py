"""Threads, pools, servers and forks: right answers, and a process that exits with 0."""

import multiprocessing
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import mlxopt as mo

BEGIN = """
    import asyncio, multiprocessing, os, signal, sys, threading, time, urllib.request
    from concurrent.futures import ThreadPoolExecutor
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    import mlx.core as mx
    import numpy as np
    import mlxopt as mo

    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    TRUE = np.array([1.0, -2.0, 0.5])

    def data(k):
        return X, X @ (k * TRUE)

    def residual(w, X, y):
        return X @ w - y

    def loss(w, X, y):
        return mx.mean(mx.square(residual(w, X, y)))

    def fit(k=1, optimizer=mo.LBFGS()):
        return mo.minimize(loss, mx.zeros(3), optimizer, *data(k))

    def check(params, k=1):
        assert np.allclose(np.array(params), k * TRUE, atol=2e-3), params

    def in_threads(*calls, daemon=False):
        answers = [None] * len(calls)
        def work(index):
            answers[index] = calls[index]()
        places = range(len(calls))
        threads = [threading.Thread(target=work, args=[i], daemon=daemon) for i in places]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        return answers
"""


PATHS = [str(Path(mo.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)}


def run(*parts: str, path: Path | None = None) -> str:
    """Run code in a new process that has to exit with 0; return what it printed.

    Args:
        parts: of the code, each indented on its own.
        path: the file to write it to, for processes that import it; None: no file.
    """
    text = "\n".join(map(textwrap.dedent, (BEGIN, *parts)))
    if path is not None:
        path.write_text(text)
    command = [sys.executable, "-W", "ignore", *(["-c", text] if path is None else [path])]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENV)
    assert (found.returncode, found.stderr) == (0, ""), found
    return found.stdout.strip()


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("daemon", [False, True])
def test_threads_at_once(count, daemon):
    run(f"""
        calls = [lambda k=k: fit(k) for k in range(1, {count} + 1)]
        for k, result in enumerate(in_threads(*calls, daemon={daemon}), 1):
            check(result.params, k)
            assert result.converged, result
    """)


def test_each_entry_in_a_thread():
    run("""
        Y = data(1)[1]
        starts, axes = mx.zeros((4, 3)), (0, None, None)
        mx.eval(starts)
        batches = mo.batches(X, Y, batch_size=10, seed=0)
        wide = lambda: mx.zeros(3, mx.float64)
        calls = [
            lambda: fit(optimizer=mo.SGD(0.3)).params,
            lambda: mo.minimize(loss, wide(), mo.Newton(), *data(1)).params,
            lambda: mo.minimize(loss, mx.zeros(3), mo.LBFGS(), *data(1), finish="float64").params,
            lambda: mo.least_squares(residual, wide(), *data(1)).params,
            lambda: mo.train(loss, mx.zeros(3), mo.Adam(0.05), batches, epochs=60).params,
            lambda: mo.minimize_many(loss, starts, mo.LBFGS(), *data(1), in_axes=axes)[3].params,
            lambda: mo.models.LinearRegression(fit_intercept=False).fit(*data(1)).coef_,
        ]
        for params in in_threads(*calls):
            check(params)
    """)


def test_a_result_of_a_thread_serves_the_main_thread():
    run("""
        result, = in_threads(fit)
        assert result.certificate.is_minimum
        more = mo.minimize(loss, result.params, mo.LBFGS(), *data(2))
        check(more.params, 2)
        again = mo.minimize(loss, result.params, mo.LBFGS(), *data(1), init=result.state)
        check(again.params)
    """)


def test_random_numbers_of_a_thread_are_those_of_its_seed():
    out = run("""
        def noisy(w):
            return mx.sum(mx.square(w - 3 + 0.1 * mx.random.normal(w.shape)))
        def draw():
            mx.random.seed(5)
            first = mo.minimize(noisy, mx.zeros(3), mo.LBFGS()).params
            mx.random.seed(6)
            second = mo.minimize(noisy, mx.zeros(3), mo.LBFGS()).params
            return first.tolist(), second.tolist()
        one, two = in_threads(draw, draw)
        assert one == two == draw(), (one, two)
        assert one[0] != one[1]
        assert np.allclose(one, 3, atol=0.6)
        print("drawn")
    """)
    assert out == "drawn"


@pytest.mark.parametrize("loop", ["time.sleep(0.001)", "fit()", "threading.Event().wait()"])
def test_a_daemon_thread_may_outlive_the_program(loop):
    out = run(f"""
        ready = threading.Event()
        def work():
            check(fit().params)
            ready.set()
            while True:
                {loop}
        threading.Thread(target=work, daemon=True).start()
        ready.wait()
        check(fit(2).params, 2)
        print("done")
    """)
    assert out == "done"


def test_a_pool_that_nobody_shuts_down():
    run("""
        pool = ThreadPoolExecutor(4)
        for k, result in enumerate(pool.map(fit, range(1, 13)), 1):
            check(result.params, k)
    """)


def test_the_workers_of_a_web_server():
    run("""
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                params = fit(int(self.path[1:])).params.tolist()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(repr(params).encode())
            def log_message(self, *args):
                pass
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        for k in range(1, 7):
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/{k}") as answer:
                check(eval(answer.read()), k)
        server.shutdown()
    """)


def test_asyncio_to_thread():
    run("""
        start = mx.zeros(3) + 0.0
        mx.eval(start)
        async def main():
            run = lambda k: mo.minimize(loss, start, mo.LBFGS(), *data(k))
            calls = [asyncio.to_thread(run, k) for k in (1, 2)]
            for k, result in enumerate(await asyncio.gather(*calls), 1):
                check(result.params, k)
        asyncio.run(main())
    """)


def test_an_unevaluated_array_of_another_thread_is_named():
    out = run("""
        lazy = mx.zeros(3) + 0.0
        Xs, Y = mx.array(X, mx.float32) * 1.0, mx.array(data(1)[1], mx.float32) * 1.0
        starts = mx.zeros((4, 3)) + 0.0
        new = lambda: mx.zeros(3)
        batches = mo.batches(Xs, Y, batch_size=10, seed=0)
        calls = [
            lambda: mo.minimize(loss, lazy, mo.LBFGS(), *data(1)),
            lambda: mo.minimize(loss, new(), mo.Newton(), Xs, Y),
            lambda: mo.minimize(loss, lazy, mo.SGD(0.1), *data(1)),
            lambda: mo.least_squares(residual, lazy, *data(1)),
            lambda: mo.minimize_many(loss, starts, mo.LBFGS(), *data(1), in_axes=(0, None, None)),
            lambda: mo.train(loss, new(), mo.SGD(0.1), batches),
            lambda: mo.models.LinearRegression().fit(Xs, data(1)[1]),
            lambda: mo.models.LinearRegression().fit(X, Y),
            lambda: mo.certify(loss, lazy, *data(1)),
        ]
        def error(call):
            try:
                call()
            except RuntimeError as error:
                return str(error)
        errors = [lambda call=call: error(call) for call in calls]
        for index, text in enumerate(in_threads(*errors)):
            assert text and "mx.eval(params, data)" in text, (index, text)
        mx.eval(lazy, Xs, Y, starts)
        print(in_threads(*errors))
    """)
    assert out == str([None] * 9)


@pytest.mark.parametrize("prefer", ["threads", "processes"])
def test_jobs_of_joblib(prefer):
    pytest.importorskip("joblib")
    run(f"""
        from joblib import Parallel, delayed
        check(fit().params)
        found = Parallel(n_jobs=2, prefer="{prefer}")(
            delayed(lambda k: fit(k).params.tolist())(k) for k in (1, 2, 3)
        )
        for k, params in enumerate(found, 1):
            check(params, k)
    """)


USES = {
    "minimize": "fit()",
    "least_squares": "mo.least_squares(residual, mx.zeros(3), *data(1))",
    "mlx alone": "mx.eval(mx.ones(3) + 1)",
    "random": "mx.eval(mx.random.normal((3,)))",
    "a thread": "in_threads(fit)",
}
FORKED = """
    def child(call):
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)
            try:
                call()
                print("computed", flush=True)
            except RuntimeError as error:
                print(error, flush=True)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
"""
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")


@needs_fork
@pytest.mark.parametrize("use", USES)
def test_a_child_of_a_fork_after_use_says_spawn(use):
    children = """
        child(fit)
        child(lambda: mx.eval(mo.grad(loss)(mx.zeros(3), *map(mx.array, data(1)))))
        child(lambda: mo.linalg.solve(mx.eye(3), mx.ones(3)))
        child(lambda: mo.models.LogisticRegression().fit(X, X[:, 0] + X[:, 1] ** 2 > 0.3))
        check(fit().params)
    """
    lines = run(USES[use], FORKED, children).splitlines()
    assert len(lines) == 4
    assert all("spawn" in line and "forked" in line for line in lines), lines


@needs_fork
def test_a_child_of_a_fork_before_use_computes():
    children = """
        child(lambda: check(fit().params))
        child(lambda: check(fit(2).params, 2))
        check(fit().params)
    """
    assert run(FORKED, children).splitlines() == ["computed"] * 2


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_that_are_not_forked_after_use(method, tmp_path):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip("not on this platform")
    main = f"""
        def task(k):
            return fit(k).params.tolist()

        if __name__ == "__main__":
            check(fit().params)
            with multiprocessing.get_context("{method}").Pool(2) as pool:
                for k, params in enumerate(pool.map(task, [1, 2, 3]), 1):
                    check(params, k)
    """
    run(main, path=tmp_path / "script.py")

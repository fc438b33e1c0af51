"""Whether runs have converged: the judgement of single runs, for many from one batched Hessian.

Where the tests of the usual case decide, all runs are judged at once; the others one by one.
"""

from __future__ import annotations

import copy

import numpy as np

from mlxopt import _curvature
from mlxopt._around import NEAR, Verdict, is_explained, oblique
from mlxopt._curvature import (
    drop_so_far,
    is_hidden,
    next_goal,
    noise_of,
    points_around,
    seems_minimal,
    to_rounding,
)
from mlxopt._dense import times
from mlxopt._point import LEAST_GAIN, NOISE, UNKNOWN, Start
from mlxopt._status import Status
from mlxopt._tree import count, epsilon, to_device
from mlxopt._verdict import Judge
from mlxopt.many._objective import BatchedObjective
from mlxopt.many._state import Method, Points, Running, Verdicts, take
from mlxopt.optimizers import Optimizer

_FAR = 100.0  # roundings that a step has to exceed to rule out a start at a minimum


class BatchedJudge:
    """Judges runs at points where they claim to have converged, or cannot proceed.

    Args:
        objective: the losses of all problems.
        method: takes the steps.
        tol: 0 takes every step.
    """

    def __init__(self, objective: BatchedObjective, method: Method, tol: float) -> None:
        self.objective, self.method, self.tol = objective, method, tol
        self.goal = np.full(objective.problems.size, np.inf)  # as in Judge, of every problem
        self._batched: BatchedObjective | None = None  # for Hessians; of the problems judged last
        self._dense = count(objective.problems.like) <= _curvature.DENSE
        self._all_free = type(method.optimizer).reduced is Optimizer.reduced

    def has_left(self, runs: Running) -> np.ndarray:
        """Return which runs have moved on from a start that cannot have been a minimum, (A,)."""
        start, points, eps = runs.start, runs.state.points, epsilon(self.objective.problems.like)
        falls = start.value - points.value > 2 * NOISE * eps * np.abs(start.value)
        step, size = (np.abs(x).max(axis=1) for x in (points.x - start.x, start.x))
        return falls & (step > _FAR * eps * size)

    def __call__(self, kind: str, runs: Running, points: Points) -> Verdicts:
        """Return the verdicts on runs at these points, arrays (A,); `kind` is a method of Judge."""
        size = len(runs.rows)
        found = Verdicts.of(np.full(size, None))
        matrix = self._hessian(runs.rows, points.x) if self._dense else None
        left = np.ones(size, dtype=bool)
        if matrix is not None and self._all_free:
            usual = np.isfinite(matrix).all(axis=(1, 2))
            if usual.any():
                some = take(usual, runs._replace(state=None))
                decided, verdicts = self._usual(kind, some, take(usual, points), matrix[usual])
                left[usual] = ~decided
                for field, values in zip(found, verdicts, strict=True):
                    field[usual] = values
        for row in np.flatnonzero(left).tolist():
            known = None if matrix is None else matrix[row]
            verdict = self._single(kind, take(row, runs), take(row, points), known)
            for field, value in zip(found, verdict, strict=True):
                field[row] = value
        return found

    def _usual(
        self, kind: str, runs: Running, points: Points, matrix: np.ndarray
    ) -> tuple[np.ndarray, Verdicts]:
        """Return which runs need no more than their Hessians to be judged, and the verdicts.

        Args:
            kind: the name of a method of `Judge`.
            runs: A rows.
            points: to judge.
            matrix: the Hessians there, (A, p, p), finite.
        """
        like, start, (x, value, g, _) = self.objective.problems.like, runs.start, points
        eps, level = epsilon(like), np.abs(value)
        curvature = _curvature.of_matrix(matrix, g, eps)
        if kind == "at_start":
            seems = seems_minimal(x, g, np.vecdot(g, times(matrix, g)), eps * level, eps)
            holds = seems & ~curvature.is_concave & is_hidden(curvature, x, eps * level, eps)
            within, decided = np.zeros(len(x), dtype=bool), np.ones(len(x), dtype=bool)
            seen = self._seen(runs, points, matrix, holds)
            holds, decided = holds & seen, ~holds | seen
        else:
            noise, way = NOISE * self.objective.epsilon(runs.rows) * level, x - start.x
            curved = np.vecdot(way, times(matrix, way))
            reference = drop_so_far(start.value - value, np.vecdot(g, way), curved, noise)
            within = curvature.gain <= self.tol**2 * reference
            last = np.asarray((kind == "at_end") | ~g.any(axis=1))
            near = last | (curvature.gain <= LEAST_GAIN * reference)
            hidden = is_hidden(curvature, x, noise, eps) & last
            holds = within | hidden | (near & (curvature.gain <= noise / NOISE))
            # At the last point, what happens along a flat direction has to be seen.
            convex = ~curvature.may_be_concave & ~(last & curvature.is_flat.any(axis=-1))
            noisy = np.flatnonzero(convex & near & ~holds)
            if len(noisy):
                size = np.maximum(np.abs(x), np.abs(way))[noisy]
                spread = self._noise(runs.rows[noisy], x[noisy], size)
                allowed = np.where(last[noisy], NOISE, 1.0) * spread
                holds[noisy] = curvature.gain[noisy] <= allowed
            holds &= convex
            # Where a rounding of the parameters changes the loss that much: as of a single run.
            rounding = eps * np.abs(x)
            moved = 0.5 * np.vecdot(rounding, times(np.abs(matrix), rounding))
            sure = within | ~last | (moved <= UNKNOWN * reference) | (reference <= noise)
            seen = self._seen(runs, points, matrix, holds & sure)
            convex, holds = convex & (seen | ~holds), holds & seen
            decided = (holds & sure) | (convex & ~last)
            goal = next_goal(points.optimality, curvature.gain, reference, self.tol)
            self.goal[runs.rows[~last]] = goal[~last]
        status = np.full(len(x), None)
        status[holds] = Status.CONVERGED
        found = Verdicts.of(status)
        found.reason[holds & ~within] = to_rounding(like)
        return decided, found._replace(gain=np.where(holds, curvature.gain, np.nan))

    def _single(
        self, kind: str, run: Running, point: Points, hessian: np.ndarray | None
    ) -> Verdict:
        """Return the verdict on one of the runs, as of a single run."""
        problems, index = self.objective.problems, int(run.rows)
        optimizer, noise = self.method.optimizer, self.objective.noise
        state = self.method.single(run.state, point, problems.like)
        objective = copy.copy(self.objective.single)
        objective.data, objective.noise = problems.single(index, point.x)[1], noise[index]
        if hessian is not None:
            structured = getattr(optimizer, "hessian", None)
            objective.keep_hessian(
                state.params, structured, to_device(hessian, self.objective.dtype)
            )
        start = Start(run.start.x, float(run.start.value))
        judge = Judge(objective, optimizer, self.tol, start)
        judge.goal = self.goal[index]
        verdict = getattr(judge, kind)(state)
        self.goal[index], noise[index] = judge.goal, objective.noise
        return verdict

    def _hessian(self, rows: np.ndarray, x: np.ndarray) -> np.ndarray | None:
        """Return the Hessians of these problems, (A, p, p); None where MLX cannot batch them."""
        try:
            return self._at(rows).hessian(x, getattr(self.method.optimizer, "hessian", None))
        except (ValueError, RuntimeError, IndexError):
            self._dense = False  # each by itself
            return None

    def _seen(
        self, runs: Running, points: Points, matrix: np.ndarray, which: np.ndarray
    ) -> np.ndarray:
        """Return which of these runs have derivatives that explain the loss nearby, (A,)."""
        x, value, g, _ = points
        seen = ~((g == 0) & ~matrix.any(axis=-1)).any(axis=-1)
        rows = np.flatnonzero(which & seen)
        if len(rows):
            size = np.maximum(np.abs(x), np.abs(x - runs.start.x))[rows]
            step = NEAR * size * oblique(x.shape[1])
            for way in (step, -step):
                model = np.vecdot(g[rows], way) + 0.5 * np.vecdot(way, times(matrix[rows], way))
                try:
                    there = self._at(runs.rows[rows]).value_and_grad(x[rows] + way)[0]
                except Exception:  # of any kind: a loss of the user, which is not defined there
                    there = np.full_like(value[rows], np.nan)
                change = there - value[rows]
                noise = NOISE * self.objective.epsilon(runs.rows[rows]) * np.abs(value[rows])
                seen[rows] &= is_explained(change, model, noise)
        return seen

    def _noise(self, rows: np.ndarray, x: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Return the standard deviations of the rounding errors of these losses at x, (A,)."""
        points = points_around(x, size, epsilon(self.objective.problems.like))
        return noise_of(np.array([self._at(rows).value_and_grad(point)[0] for point in points]))

    def _at(self, rows: np.ndarray) -> BatchedObjective:
        """Return the losses of these problems."""
        if self._batched is None:
            # A few evaluations: compiling would take longer.
            one, problems = self.objective.single, self.objective.problems
            p = count(problems.like)
            self._batched = BatchedObjective(one, problems, compile=False, rows=p)
        self._batched.keep(rows)
        return self._batched

"""How the entries of an array lie in memory: strides, in entries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides, in entries, of an array in C order."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def collapsed(extents: list[str], strides: Iterable[Sequence[int]]) -> list[tuple[str, int]]:
    """Return loops as (extent, axis whose strides it steps by); neighbours are joined into one.

    The first axis of a pass over rows is joined too: its length is in the extent.
    """
    strides = list(strides)
    axes = [(extent, a) for a, extent in enumerate(extents) if extent != "1"]
    joined: list[tuple[str, int]] = []
    for extent, axis in reversed(axes):
        if joined:
            inner, last = joined[-1]
            # `last` is the innermost axis of what has been joined; its length is in `inner`.
            if all(_follows(own[axis], own[last], inner) for own in strides):
                joined[-1] = (f"{extent} * {inner}", last)
                continue
        joined.append((extent, axis))
    return joined[::-1]


def _follows(outer: int, inner: int, extent: str) -> bool:
    """Whether a step along the outer axis is one past the end of the inner axis."""
    if "rows" in extent:
        return outer == inner == 0
    return outer == inner * math.prod(int(part) for part in extent.split(" * "))


def reshaped(
    old: Sequence[int], strides: Sequence[int], new: Sequence[int]
) -> tuple[int, ...] | None:
    """Return the strides of a view in another shape; None if there is no such view."""
    if strides == contiguous(old):
        return contiguous(new)
    sizes = [(s, t) for s, t in zip(old, strides, strict=True) if s != 1]
    found: list[int] = []
    remaining = list(new)
    for size, step in sizes:
        # Axes of length one may come and go; others must be as they were, or be split.
        parts: list[int] = []
        while math.prod(parts) < size and remaining:
            parts.append(remaining.pop(0))
        if math.prod(parts) != size:
            return None
        found += [step * s for s in contiguous(parts)]
    found += [0] * len(remaining)
    return tuple(found)


def along(strides: Sequence[int], shape: Sequence[int], around: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of an operand along the axes of a loop, 0 where it is repeated."""
    missing = len(around) - len(shape)
    own = [
        0 if size == 1 and wide != 1 else step
        for step, size, wide in zip(strides, shape, around[missing:], strict=True)
    ]
    return (*[0] * missing, *own)

"""What serves the machine: the BLAS under MLX, its compiler, its devices."""

try:
    import mlx.core  # noqa: F401
except ImportError as error:  # the bare Linux wheel has no backend
    raise ImportError(
        "mlxopt found no MLX backend. On Linux, install one with pip install 'mlxopt[cpu]' or "
        "pip install 'mlxopt[cuda]'; on macOS, pip install mlxopt brings it. "
        f"(MLX said: {error})"
    ) from None

from mlxopt._platform import threads  # noqa: F401 - a fork can precede all computations

"""A traced graph becomes a loop: trace, simplify, plan (NumPy), C; compared with MLX."""

"""Many problems at once: one batched evaluation, and each algorithm over the rows of arrays.

Notation: B = the number of problems, A = how many of them are still running, p = the parameters of
one. Losses and their derivatives are computed in MLX, for all problems in one graph; all else is
NumPy in float64, arrays whose first axis is A, with masks where one problem alone would branch.
"""

"""Many problems at once: one batched evaluation, and each algorithm over the rows of arrays.

Notation: B = the number of problems, A = those still running, p = the parameters of one. Losses and
derivatives are computed in MLX, for all problems in one graph, everything else in NumPy float64:
arrays whose first axis is A, with masks in place of the branches of a single run.
"""

"""A traced graph becomes a loop: trace, simplify, plan (NumPy), C; compared with MLX.

1. `_graph.py`. `mx.export_function` traces a function of arrays, its derivative included, and gives
   each primitive with its shapes, dtypes and arguments: a list of nodes. While it traces, functions
   of `mlxopt.special` and `mlxopt.losses` are written in plain operations (`_operation.py`).
2. `_simplify.py`, `_rules.py`. The list is rebuilt with fewer and simpler nodes. `_numpy.py` holds
   each in NumPy, and computes those of constants at once.
3. `_plan.py`. The nodes as lines of NumPy with arrays made beforehand. Most runs stay here: no
   compiler is called, and a line takes 0.7 µs where MLX's dispatch of a primitive takes 2 to 4.
4. `_schedule.py`, `_c.py`, `_expressions.py`, `_others.py`, `_layout.py`. Where a call is long, the
   nodes as one function in C. What has the rows of the data as its first axis is computed for a
   strip of them at a time: X @ w, the functions of each row, and Xᵀ r pass over X once, and what
   lies between stays in the cache. `runtime.h` and `functions.h` are what the loops call;
   `_build.py` calls the compiler, and keeps what it makes.
5. `_lowered.py`. A function of trees of arrays, run by one of these, and at its first two calls by
   MLX too.

Which of the two runs depends on the graph alone, so that runs repeat to the last bit.
"""

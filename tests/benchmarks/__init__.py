"""The benchmarks of `mlxopt bench`: a file per family of workloads, and the timing."""

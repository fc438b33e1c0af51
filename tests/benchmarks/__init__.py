"""What `mlxopt bench` measures: one file for each family of workloads, and one for the timing."""

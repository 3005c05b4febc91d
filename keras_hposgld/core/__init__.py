"""Plain tensors: problems, derivatives, vectors, solvers, loops. Private."""

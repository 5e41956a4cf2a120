"""One file per benchmark, opened by name through :mod:`evaluation.benchmark`."""

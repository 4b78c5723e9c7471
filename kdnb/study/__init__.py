"""Many runs on a Dask cluster, a process each: `python -m kdnb.study`."""

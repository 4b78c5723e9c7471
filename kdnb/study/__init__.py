"""Many runs on a Dask cluster, one process per run: `python -m kdnb.study`."""

"""Many runs on a Dask cluster, in processes of their own: `python -m kdnb.study`."""

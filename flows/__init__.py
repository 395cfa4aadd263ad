"""What runs when: Prefect flows, the Dask runtime, configuration, the `headwater` command."""

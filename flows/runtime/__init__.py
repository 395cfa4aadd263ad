"""Where and how things run, and by which settings.

`settings` says all that can be set, `sources` reads it from file, environment and caller, `resolve`
makes it whole with what a set remembers in the `home`. `console` shows progress and tables, `dask`
gives workers, `server` and `signals` see that everything ends with the command.
"""

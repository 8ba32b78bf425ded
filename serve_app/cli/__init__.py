"""The `nilm` command line, one module a command group."""

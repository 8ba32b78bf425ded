"""Architectures, registry and artifacts: know torch and numpy, not Ray, not HTTP."""

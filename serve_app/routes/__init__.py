"""HTTP routes, one module a concern; thin: they parse, call a use case and shape the reply."""

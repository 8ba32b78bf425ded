"""Ray Serve deployments: know Ray, not HTTP."""

"""The HTTP service: knows HTTP and who may do what. `app.py` is the composition root; read it first."""

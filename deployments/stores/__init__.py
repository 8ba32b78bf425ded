"""Durable stores of predictions behind one protocol (`base.py`)."""

"""`nilm demo`: replay one household's mains against a running service and draw what came back."""

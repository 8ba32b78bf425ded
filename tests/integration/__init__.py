"""The whole service, started as a user starts it. A package, so that what its tests share ends with them."""

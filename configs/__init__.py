"""Values of the environments: development, production, and the files that deploy them."""

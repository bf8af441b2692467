"""The container that runs user code: terminals, kernels, ports, previews. Holds no secrets."""

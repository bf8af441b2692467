"""The container that owns files and documents and makes them durable. Never runs user code."""

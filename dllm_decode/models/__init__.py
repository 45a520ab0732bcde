"""Models: adapters, loading, exact toy worlds."""

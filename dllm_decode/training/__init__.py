"""Small models and filters that are trained here."""

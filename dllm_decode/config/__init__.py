"""Configuration becomes objects: compose, check, instantiate."""

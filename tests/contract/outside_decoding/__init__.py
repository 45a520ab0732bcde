"""What somebody else might write: one part of each kind, against the public names alone."""

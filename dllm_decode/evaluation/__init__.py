"""Problems, graders and metrics."""

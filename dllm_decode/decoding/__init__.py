"""One loop and the types that plugins read and write."""

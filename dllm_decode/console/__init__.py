"""What a person at a terminal sees: display, prompts, run folders."""

"""Ideas that are not the paper's, each behind a flag of its own."""

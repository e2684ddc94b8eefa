"""The measurements of benchmark.py, a file for each, and what they share."""

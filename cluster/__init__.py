"""Many runs on many machines: jobs on a Ray cluster, and what sweeps and searches share."""

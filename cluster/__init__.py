"""Many runs on one machine or many: what sweeps and searches share, on top of Ray Tune."""

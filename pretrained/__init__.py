"""The agents that come with the project: README.md says how each was made."""

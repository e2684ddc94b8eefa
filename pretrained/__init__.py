"""What makes a trained network ready to come with the project."""

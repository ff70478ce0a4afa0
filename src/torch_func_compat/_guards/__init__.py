"""What torch refuses, and what it gets wrong without an error."""

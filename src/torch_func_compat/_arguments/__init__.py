"""What a transform is called with."""

"""What this torch can do: facts, and adapters for pytrees, random state, closures, tensors and compiling."""

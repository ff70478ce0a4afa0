"""What this torch is and has: facts, pytrees, random state, closures, tensors, compiling."""

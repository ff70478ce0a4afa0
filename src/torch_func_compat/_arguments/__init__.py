"""The arguments of a transform: pytrees, argnums, in_dims, batches and chunks."""

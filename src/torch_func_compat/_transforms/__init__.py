"""What is computed: every operator, derived once on the primitives of a backend."""

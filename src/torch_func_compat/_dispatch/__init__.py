"""Who answers: the choice of a backend, and what happens where it refuses."""

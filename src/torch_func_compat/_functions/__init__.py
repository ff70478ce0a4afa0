"""How a Function is evaluated: on plain autograd, and on each kind of level that torch.func has.

A *definition* here is a class with the static methods of a new-style autograd.Function: ``forward``,
``setup_context``, ``backward``, and perhaps ``jvp`` and ``vmap``.
"""

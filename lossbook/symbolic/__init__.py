"""Derivations as SymPy objects, a file a derivation: the notebooks show them, the tests hold them against autograd."""

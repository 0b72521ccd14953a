"""The commands of ``hiddenweights``, one function each; torch is imported inside them."""

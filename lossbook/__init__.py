"""lossbook: the executable companion to five sources on loss functions."""

__version__ = "0.1.0"

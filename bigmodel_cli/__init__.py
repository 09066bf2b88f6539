"""bigmodel: train, fine-tune, evaluate, explain and ship models with one engine.

Importing this package loads no torch, so ``bigmodel --help`` stays instant.
"""

__version__ = "0.1.0"

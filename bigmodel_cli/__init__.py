"""bigmodel: train, fine-tune, evaluate, explain and ship models with one engine.

Importing this package loads no torch, so ``bigmodel --help`` stays instant.
"""

import os

# onnxruntime from 1.32 on reports its use to its maker, from native code, as soon as it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

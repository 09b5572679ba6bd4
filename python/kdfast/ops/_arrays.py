"""Element types as the compiled modules name them (DType in csrc/core/types.h)."""

import torch

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

import os
import sys
from pathlib import Path

import torch
from hypothesis import settings

# The folders here bear the packages' names. pytest puts this one first on the path, where they would pass for namespace
# packages and hide an editable install; the root, behind everything installed, has the real ones.
sys.path.append(str(Path(__file__).parents[1]))

settings.register_profile("bitfrontier", deadline=None, derandomize=True, database=None)
settings.load_profile("bitfrontier")

# One thread a process, as a cell has: under `-n 2` two processes of two threads each would stand in each other's way.
torch.set_num_threads(1)

# Without a GPU, kernels run under the interpreter. Triton decides when it decorates them: before the first import.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import sys
from pathlib import Path

# Small checkpoints (`tiny`) and arithmetic in float64 (`float64`) are those of the suite's tests.
sys.path.append(str(Path(__file__).parents[1] / "suite"))

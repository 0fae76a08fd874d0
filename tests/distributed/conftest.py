"""The adapter's tiny models, for tests that start several processes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "adapter"))  # tiny models
sys.path.insert(0, str(Path(__file__).parent))

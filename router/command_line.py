"""What all commands of `homeport` have in common: their exit codes, the config that they take, how they print."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

FAILED, WRONG, NOT_RUNNING = 1, 2, 3
"""It failed; the input or the config is wrong (nothing was changed); homeport does not run. 0: it is done."""
DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "configs" / "homeport.yaml"
"""Where neither `--config` nor HOMEPORT_CONFIG says."""
PLAIN: Mapping[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
"""For rich's `print`: the text as it is."""

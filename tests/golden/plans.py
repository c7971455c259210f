"""Record the plans of all shipped recipes, which ``unspoken run --plan`` prints without torch.

To be run after a recipe, a model or what a plan counts was changed: ``python tests/golden/plans.py``.
"""

from __future__ import annotations

import json
from pathlib import Path

from unspoken.training.plan import plan
from unspoken.training.recipe import load, shipped
from unspoken.training.recorded_plans import PLANS


def main() -> None:
    lines = [f'"{name} {size}": {json.dumps(plan(load(name, size)))}' for name, size, _ in shipped()]
    Path(str(PLANS)).write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()

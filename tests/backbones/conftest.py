"""Lets the files of this folder import each other."""

import sys
from pathlib import Path

# Import mode "importlib" leaves sys.path alone; the files that these tests share lie beside this one.
sys.path.insert(0, str(Path(__file__).parent))

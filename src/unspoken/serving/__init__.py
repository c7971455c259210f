"""An OpenAI-compatible server over the generation engine: silent reasoning behind an interface that clients know."""

from unspoken.serving.engine import Engine, Limits
from unspoken.serving.systems import Served, open_served

try:
    from unspoken.serving.server import app, serve
except ModuleNotFoundError as missing:
    if missing.name not in ("fastapi", "pydantic", "starlette", "uvicorn"):
        raise
    raise ValueError(f"the server needs {missing.name}: install it with pip install 'unspoken[serve]'") from None

__all__ = ["Engine", "Limits", "Served", "app", "open_served", "serve"]

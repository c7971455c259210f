"""An explicit chain that is closed by force: at once (NoThink) or after a budget of tokens (budget forcing)."""

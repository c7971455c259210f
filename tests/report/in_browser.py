"""A page of results in a real browser."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path
from shutil import which
from typing import Any

BROWSER = which("chromium")


def returned_by_page(page: str, script: str, folder: Path, *options: str) -> Any:
    """The value of an expression in a page that has been loaded, through JSON.

    Args:
        folder: an empty one, for the page and the browser.
        options: further ones of the browser.
    """
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    run = f"<script>addEventListener('load', () => {{ document.title = JSON.stringify({script}); }})</script>"
    (folder / "page.html").write_text(page.replace("</body>", f"{run}</body>"))
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += [*options, "--dump-dom", (folder / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return json.loads(html.unescape(re.findall(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[0]))

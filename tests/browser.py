"""What a browser makes of a page, where there is one."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
LOOK = """
<script>
let errors = 0;
window.onerror = () => { errors += 1; };
window.addEventListener("load", () => {
  const figures = [...document.querySelectorAll("figure")].map((figure) => {
    const shown = [...figure.querySelectorAll("svg")]
      .map((svg) => [svg, svg.getBoundingClientRect()])
      .filter(([svg, box]) => box.width > 0 && box.height > 0);
    const outside = shown.flatMap(([svg, box]) => [...svg.querySelectorAll("text")].filter((t) => {
      const own = t.getBoundingClientRect();
      return own.left < box.left - 2 || own.right > box.right + 2 ||
        own.top < box.top - 2 || own.bottom > box.bottom + 2;
    }).map((t) => t.textContent));
    return {shown: shown.length, width: shown.length ? shown[0][1].width : 0, outside};
  });
  const found = document.createElement("pre");
  found.id = "found";
  found.textContent = JSON.stringify({
    errors, figures,
    width: window.innerWidth,
    scrollWidth: document.documentElement.scrollWidth,
    resources: performance.getEntriesByType("resource").map((entry) => entry.name),
    images: [...document.images].map((image) => image.complete && image.naturalWidth),
    tables: [...document.querySelectorAll("table")].map((table) => table.rows.length),
  });
  document.body.append(found);
});
</script>
"""


# No window is as narrow as a phone.
FRAME = """<!DOCTYPE html><meta charset="utf-8">
<iframe style="width:{width}px;height:900px;border:0" srcdoc="{page}"></iframe>
<script>
window.addEventListener("load", () => {{
  document.body.append(document.querySelector("iframe").contentDocument.getElementById("found"));
}});
</script>
"""


def look_at(page: str, width: int, folder: Path) -> dict[str, Any]:
    """Load a page in a frame of a width, and measure what is shown."""
    assert BROWSER is not None
    page = html.escape(page.replace("</head>", f"{LOOK}</head>", 1))
    path = folder / "looked-at.html"
    path.write_text(FRAME.format(width=width, page=page), encoding="utf-8")
    command = [
        BROWSER,
        *["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"],
        *["--disable-background-networking", "--disable-component-update"],
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1300,900",
        "--dump-dom",
        path.as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    match = re.search(r'<pre id="found">(.*?)</pre>', dom, flags=re.DOTALL)
    assert match is not None, dom[-2000:]
    found: dict[str, Any] = json.loads(html.unescape(match[1]))
    return found

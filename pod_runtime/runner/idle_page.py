"""The page of a preview whose program does not listen."""

from __future__ import annotations

import html
import re

_CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)|[\x00-\x08\x0b-\x1f\x7f]")
_LINES = 40

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
  :root {{ color-scheme: light dark }}
  body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0; min-height: 100vh; display: grid;
         place-items: center; color: CanvasText; background: Canvas }}
  main {{ max-width: 44rem; width: calc(100% - 3rem); padding: 1.5rem 0 }}
  h1 {{ font-size: 1.25rem; margin: 0 0 .5rem }}
  p {{ margin: 0 0 1rem; opacity: .8 }}
  pre {{ font: 13px/1.45 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere;
        margin: 0; padding: 1rem; border: 1px solid color-mix(in srgb, CanvasText 20%, Canvas);
        border-radius: 6px; max-height: 60vh; overflow: auto }}
</style>
<main role="status">
<h1>{title}</h1>
<p>{text}</p>
{output}
</main>
<script>
  const look = async () => {{
    if (document.visibilityState === "visible") {{
      try {{
        const answer = await fetch(location.href, {{ method: "HEAD", cache: "no-store" }});
        if (answer.headers.get("Codevo-Gateway") !== "idle") return location.replace(location.href);
      }} catch {{ }}
    }}
    setTimeout(look, 1000);
  }};
  setTimeout(look, 1000);
</script>
</html>
"""


def plain(text: str) -> str:
    """Program output without control sequences, its last lines only."""
    return "\n".join(_CONTROL.sub("", text).rstrip().splitlines()[-_LINES:])


def idle_page(port: int, *, running: bool, ended: str | None, output: str) -> bytes:
    """``ended`` says how the program failed (``exit code 1``), ``None`` when it did not."""
    if running:
        title = "Waiting for the program"
        text = f"It runs, but nothing listens on port {port} yet. This page shows it as soon as it does."
    elif ended is not None:
        title = "The program has stopped"
        text = f"It ended with: {ended}. Run it again and this page comes back by itself."
    else:
        title = "Nothing is running here yet"
        text = f"Nothing listens on port {port}. Press Run, and this page shows the program by itself."
    shown = plain(output) if running or ended is not None else ""
    block = f"<pre>{html.escape(shown)}</pre>" if shown else ""
    return _PAGE.format(title=html.escape(title), text=html.escape(text), output=block).encode()

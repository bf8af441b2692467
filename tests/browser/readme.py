"""Takes the README's pictures from the real thing: ``python -m tests.browser.readme``."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from tests.browser.conftest import FLAGS
from tests.browser.people import PATIENCE, Person
from tests.harness import HubProcess

IMAGES = Path(__file__).parents[2] / "docs" / "images"
PROJECTS = [("react", "Garden planner"), ("flask", "Guest book"), ("python", "Weather report"),
            ("cpp", "Chess engine"), ("static", "Portfolio"), ("express", "Score board")]  # fmt: skip

APP = """\
import { useState } from "react";

const plants = ["Tomatoes", "Basil", "Beans", "Pumpkins"];

export default function App() {
  const [watered, setWatered] = useState(["Basil"]);
  const water = (plant) => setWatered([...watered, plant]);

  return (
    <main>
      <h1>Our garden</h1>
      {plants.map((plant) => (
        <button key={plant} onClick={() => water(plant)}>
          {watered.includes(plant) ? "✓" : "○"} {plant}
        </button>
      ))}
    </main>
  );
}
"""
STYLE = """\
:root { color-scheme: light dark; font: 17px/1.5 system-ui, sans-serif; }
body { margin: 0; }
main { display: grid; gap: 12px; max-width: 280px; margin: 48px auto; }
button { padding: 14px 18px; border: 1px solid #7fb08a66; border-radius: 12px; background: #7fb08a22;
  font: inherit; text-align: left; }
"""


def main() -> None:
    """Two people at work, light and dark, and the dashboard of one of them."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=PATIENCE)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        hub = HubProcess(Path(folder) / "data")
        hub.start()
        try:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
            _take(Person(browser, hub, "ana").join(), Person(browser, hub, "ben").join())
            browser.close()
        finally:
            hub.cleanup()


def _take(ana: Person, ben: Person) -> None:
    ids = [ana.project(template, title) for template, title in reversed(PROJECTS)]
    project = ids[-1]
    for one in ids[-3:]:
        ana.ok("PUT", f"/api/projects/{one}/members/{ben.name}", {"role": "editor"})
    ana.enter(project)
    ben.enter(project)
    ana.run()
    frame = ana.page.frame_locator("iframe[title^='Preview of']")
    expect(frame.get_by_role("heading", name="Hello, React")).to_be_visible(timeout=60_000)
    path = "src/App.jsx"
    ana.find(path)
    ben.find(path)
    ana.new_terminal()
    ana.type_in_terminal("1", "npm ls\n")
    ana.terminal_shows("vite@")
    ana.put(project, path, APP)
    ana.put(project, "src/style.css", STYLE)
    expect(frame.get_by_role("heading", name="Our garden")).to_be_visible()
    ana.sees(path, "Our garden")
    ana.editor(path).get_by_text("const plants").click()
    ana.durable()
    for scheme in ("light", "dark"):
        ana.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        expect(ana.page.locator(f"html[data-theme={scheme}]")).to_be_attached()
        ben.editor(path).get_by_text("<h1>Our garden").click()
        ben.page.keyboard.press("End")
        ben.page.keyboard.type(" ")
        ben.page.keyboard.press("Backspace")
        expect(ana.page.locator(".cm-ySelectionInfo").get_by_text(ben.name)).to_be_visible()
        ana.page.screenshot(path=IMAGES / f"ide-{scheme}.png")
    ana.page.emulate_media(color_scheme="light")
    ana.page.goto("/")
    expect(ana.page.get_by_role("link", name=re.compile("Portfolio"))).to_be_visible()
    ana.page.screenshot(path=IMAGES / "dashboard.png", animations="disabled")


if __name__ == "__main__":
    main()

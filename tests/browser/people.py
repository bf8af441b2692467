"""A person with a browser of their own, and what such a person does on the page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Locator, Page, WebSocketRoute, expect

from tests.harness import HubProcess

ARTIFACTS = Path(__file__).parents[2] / ".artifacts" / "browser"
PASSWORD = "correct horse battery"
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
#: The machine may be slow and busy: nothing here waits for less.
PATIENCE = 30_000

#: What a browser itself writes when an answer is an error that the page shows in its own words.
REFUSALS = re.compile(r"Failed to load resource: the server responded with a status of 4\d\d")
#: What it writes while the hub, the workspace or the network is away.
OUTAGE = re.compile(
    r"WebSocket connection to .* failed|status of 50[0-9]"
    r"|net::ERR_(CONNECTION|INTERNET|NETWORK|EMPTY|SOCKET|INCOMPLETE)"
)
#: Playwright's stand-in for WebSocket passes on what was under way when its socket ended. The page's own
#: scripts have an address.
STAND_IN = re.compile(r"^WebSocket is already in CLOSING or CLOSED state\. \(\)$")

_EDITOR_TEXT = """(content) => [...content.querySelectorAll('.cm-line')].map((line) => {
  const copy = line.cloneNode(true);
  for (const caret of copy.querySelectorAll('.cm-ySelectionCaret')) caret.remove();
  return copy.textContent.replaceAll('\\u2060', '').replaceAll('\\u200b', '');
}).join('\\n')"""


def until(page: Page, what: Callable[[], object], timeout: float = PATIENCE) -> None:
    """Wait until ``what()`` is true, and let the browser's events through meanwhile."""
    waited = 0.0
    while not what():
        if waited >= timeout:
            raise AssertionError("it did not come to pass in time")
        page.wait_for_timeout(100)
        waited += 100


class Cable:
    """A browser's connection to workspaces. `set_offline` alone leaves open WebSockets as they are."""

    def __init__(self, context: BrowserContext) -> None:
        self._context = context
        self._away = False
        self._sockets: list[WebSocketRoute] = []
        context.route_web_socket(re.compile("/p/"), self._relay)

    def _relay(self, socket: WebSocketRoute) -> None:
        if self._away:
            socket.close(code=1001)
        else:
            socket.connect_to_server()
            self._sockets.append(socket)

    def pull(self) -> None:
        self._away = True
        self._context.set_offline(True)
        while self._sockets:
            self._sockets.pop().close(code=1001)

    def plug(self) -> None:
        self._away = False
        self._context.set_offline(False)


class Person:
    """A browser context with one page, its complaints, and the REST API as the same person."""

    def __init__(self, browser: Browser, hub: HubProcess, name: str, **options: Any) -> None:
        self.name = name
        self.hub = hub
        self.complaints: list[str] = []
        self.log: list[str] = []
        self.noise: list[re.Pattern[str]] = [REFUSALS]
        options = {"viewport": DESKTOP, "color_scheme": "light", "reduced_motion": "reduce"} | options
        self.context = browser.new_context(base_url=hub.url, **options)
        self.context.set_default_timeout(PATIENCE)
        self.context.on("page", self._watch)
        self.page = self.context.new_page()

    def _watch(self, page: Page) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda error: self._complain(f"{error.name}: {error.message}\n{error.stack}"))

    def _console(self, message: ConsoleMessage) -> None:
        where = message.location.get("url", "")
        text = f"{message.text} ({where})"
        self.log.append(f"{message.type}: {text}")
        # what runs in a preview is a person's own program
        ours = not where or where.startswith(self.hub.url)
        if message.type == "error" and ours and not any(noise.search(text) for noise in self.noise):
            self.complaints.append(text)

    def _complain(self, text: str) -> None:
        self.log.append(f"thrown: {text}")
        self.complaints.append(text)

    def expect_outage(self) -> None:
        """From here on the hub, the workspace or the network is away for a while."""
        self.noise.append(OUTAGE)

    def cable(self) -> Cable:
        """What can be pulled out of this person's computer; to be asked for before the IDE is opened."""
        self.expect_outage()
        self.noise.append(STAND_IN)
        return Cable(self.context)

    # --- without the page ---

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """A call of the REST API with this person's cookies: status, and the JSON or the text."""
        cookies = {c["name"]: c["value"] for c in self.context.cookies(self.hub.url)}
        answer = self.context.request.fetch(
            path, method=method, headers={"X-XSRFToken": cookies.get("_xsrf", "")}, data=body
        )
        text = answer.text()
        return answer.status, json.loads(text) if "json" in answer.headers.get("content-type", "") else text

    def ok(self, method: str, path: str, body: Any = None) -> Any:
        status, found = self.call(method, path, body)
        assert status < 400, f"{method} {path}: {status} {found}"
        return found

    def join(self) -> Person:
        """An account, without the page's help."""
        self.ok("GET", "/api/config")
        self.ok("POST", "/api/signup", {"name": self.name, "password": PASSWORD})
        return self

    def project(self, template: str = "python", title: str = "Test") -> str:
        return str(self.ok("POST", "/api/projects", {"title": title, "template": template})["id"])

    def put(self, project: str, path: str, text: str) -> None:
        """Write a file from outside the editor; the workspace must run."""
        body = {"type": "file", "format": "text", "content": text}
        self.ok("PUT", f"/p/{project}/api/contents/{path}", body)

    def read(self, project: str, path: str) -> str:
        return str(self.ok("GET", f"/p/{project}/api/contents/{path}")["content"])

    # --- on the page ---

    def sign_up(self) -> None:
        self.page.get_by_label("Name", exact=True).fill(self.name)
        self.page.get_by_label("Password").fill(PASSWORD)
        self.page.get_by_role("button", name="Create account").click()

    def enter(self, project: str) -> Person:
        """Open the IDE, started when it was not, and wait until it is connected."""
        self.page.goto(f"/projects/{project}")
        self.connected()
        return self

    @property
    def status(self) -> Locator:
        return self.page.get_by_role("contentinfo", name="Status")

    def connected(self) -> None:
        expect(self.status.get_by_text("connected", exact=True)).to_be_visible(timeout=60_000)

    def durable(self) -> None:
        expect(self.status.get_by_text(re.compile(r"^saved · durable"))).to_be_visible(timeout=60_000)

    def open(self, name: str) -> Locator:
        """Open a file by the tree; gives its editor."""
        self.tree_item(name).click()
        editor = self.editor(name)
        expect(editor).to_be_visible()
        return editor

    def find(self, path: str) -> Locator:
        """Open a file by its name; gives its editor."""
        self.page.keyboard.press("Control+p")
        dialog = self.page.get_by_role("dialog", name="Find a file")
        dialog.get_by_role("combobox").fill(path)
        dialog.get_by_role("option", name=path.rpartition("/")[2]).first.click()
        editor = self.editor(path)
        expect(editor).to_be_visible()
        return editor

    def tree_item(self, name: str) -> Locator:
        return self.page.get_by_role("tree").get_by_role("treeitem", name=name, exact=True)

    def tree_menu(self, name: str, item: str) -> None:
        self.tree_item(name).hover()
        self.page.get_by_role("button", name=f"More for {name}", exact=True).click()
        self.page.get_by_role("menuitem", name=item).click()

    def editor(self, path: str) -> Locator:
        escaped = re.escape(path).replace("/", r"\/")
        return self.page.get_by_role("textbox", name=re.compile(rf"^Editor of {escaped}(,|$)"))

    def text(self, path: str) -> str:
        return str(self.editor(path).evaluate(_EDITOR_TEXT))

    def sees(self, path: str, *parts: str, timeout: float = PATIENCE) -> None:
        """Wait until the editor shows every one of ``parts``."""
        expect(self.editor(path)).to_be_visible()
        try:
            until(self.page, lambda: all(part in self.text(path) for part in parts), timeout)
        except AssertionError:
            raise AssertionError(f"{self.name} does not see {parts} in:\n{self.text(path)}") from None

    def write_at_end(self, path: str, text: str, delay: float = 0) -> None:
        self.editor(path).focus()
        self.page.keyboard.press("Control+End")
        self.page.keyboard.type(text, delay=delay)

    def new_terminal(self) -> None:
        self.page.get_by_role("button", name="New terminal").click()

    def show_terminal(self, name: str) -> None:
        self.page.get_by_role("tab", name=f"Terminal {name}").click()

    def terminal(self, name: str) -> Locator:
        return self.page.get_by_role("textbox", name=re.compile(rf"^Terminal {re.escape(name)}(,|$)"))

    def terminal_text(self) -> str:
        return str(self.page.locator(".terminal:not(.hidden) .xterm-rows").inner_text()).replace("\xa0", " ")

    def type_in_terminal(self, name: str, text: str) -> None:
        self.terminal(name).focus()
        self.page.keyboard.type(text)

    def terminal_shows(self, pattern: str) -> None:
        expect(self.page.locator(".terminal:not(.hidden) .xterm-rows")).to_be_visible()
        try:
            until(self.page, lambda: re.search(pattern, self.terminal_text()))
        except AssertionError:
            raise AssertionError(
                f"{self.name} does not see {pattern!r} in:\n{self.terminal_text()}"
            ) from None

    @property
    def output(self) -> Locator:
        return self.page.get_by_role("log", name="Output of the program")

    def run(self) -> None:
        self.page.get_by_role("button", name="Run", exact=True).click()

    # --- pictures ---

    def picture(self, name: str, page: Page | None = None) -> None:
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        (page or self.page).screenshot(path=ARTIFACTS / f"{name}.png", animations="disabled")

    def pictures(self, name: str, page: Page | None = None) -> None:
        """The same state light and dark, on a desktop and on a phone; nothing may stick out sideways."""
        page = page or self.page
        for size, viewport in (("wide", DESKTOP), ("phone", PHONE)):
            page.set_viewport_size(viewport)  # type: ignore[arg-type]
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
                if page.url.startswith(self.hub.url):
                    expect(page.locator(f"html[data-theme={scheme}]")).to_be_attached()
                self.picture(f"{name}-{size}-{scheme}", page)
            too_wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert too_wide <= 0, f"{name} is {too_wide} px too wide on a {size} screen"
        page.emulate_media(color_scheme="light")
        page.set_viewport_size(DESKTOP)  # type: ignore[arg-type]

"""Each place of the page by itself: accounts, dashboard, files, keyboard, phone, administration, embeds."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.people import ARTIFACTS, PASSWORD, PHONE, Person, until
from tests.harness import HubProcess, processes

pytestmark = pytest.mark.browser
Make = Callable[..., Person]
AXE = Path(__file__).parents[2] / "static" / "node_modules" / "axe-core" / "axe.min.js"


@pytest.fixture(scope="module", autouse=True)
def administrator(hub: HubProcess, browser: Browser) -> str:
    """The first account, an administrator's; gives its name."""
    boss = Person(browser, hub, "boss").join()
    boss.context.close()
    return boss.name


def log_in(one: Person, name: str, password: str = PASSWORD) -> None:
    one.page.get_by_label("Name or e-mail").fill(name)
    one.page.get_by_label("Password").fill(password)
    one.page.get_by_role("button", name="Log in").click()


def test_what_sign_up_and_login_refuse(person: Make, administrator: str) -> None:
    ana = person("ana")
    page = ana.page
    page.goto("/signup")
    name, password = page.get_by_label("Name", exact=True), page.get_by_label("Password")
    create = page.get_by_role("button", name="Create account")
    for bad_name, bad_password, field, words in [
        (administrator, PASSWORD, name, "taken"),
        ("no spaces", PASSWORD, name, ""),
        (ana.name, "short", password, ""),
        (ana.name, "password123", password, ""),
        (ana.name, "aaaaaaaaaaaa", password, ""),
    ]:
        name.fill(bad_name)
        password.fill(bad_password)
        create.click()
        expect(field).to_have_attribute("aria-invalid", "true")
        expect(page.get_by_role("alert").filter(has_text=re.compile(words + ".{10,}"))).to_be_visible()
        expect(create).to_be_enabled()
    ana.pictures("sign-up-refused")
    assert ana.call("GET", "/api/user")[0] == 401

    ana.sign_up()
    expect(page.get_by_role("heading", name=f"Hello, {ana.name}")).to_be_visible()
    page.get_by_role("button", name="Your account").click()
    page.get_by_role("menuitem", name="Log out").click()

    expect(page.get_by_role("heading", name="Welcome back")).to_be_visible()
    # a name that nobody has and a wrong password are told alike
    for who in (ana.name, "nobody-here"):
        log_in(ana, who, "not the password")
        expect(page.get_by_text("The name or the password is wrong.")).to_be_visible()
    log_in(ana, ana.name)
    expect(page.get_by_role("heading", name=f"Hello, {ana.name}")).to_be_visible()

    # whoever follows a link without being logged in comes back to it
    page.context.clear_cookies()
    page.goto("/account")
    log_in(ana, ana.name)
    expect(page.get_by_role("heading", name="Your account")).to_be_visible()


def test_too_many_attempts_are_slowed_down(person: Make) -> None:
    ana, guesser = person("ana").join(), person("guesser")
    guesser.page.goto("/login")
    button = guesser.page.get_by_role("button", name="Log in")
    for _ in range(30):
        log_in(guesser, ana.name, "a guess")
        expect(button).to_be_enabled()
        if guesser.page.get_by_text("Too many attempts").is_visible():
            break
    expect(guesser.page.get_by_text("Too many attempts")).to_be_visible()
    guesser.pictures("login-too-many")


def test_dashboard(person: Make) -> None:
    ana = person("ana").join()
    titles = ["Weather", "Chess clock", "Recipes", "Guest book", "Portfolio", "Compiler", "Notes"]
    templates = ["python", "node", "static", "flask", "react", "cpp", "express"]
    for title, template in zip(titles, templates, strict=True):
        ana.project(template, title)
    page = ana.page
    page.goto("/")
    mine = page.locator("section").filter(has=page.get_by_role("heading", name="Your projects"))
    expect(mine.get_by_role("link")).to_have_count(7)
    ana.pictures("dashboard")

    search = page.get_by_role("searchbox", name="Search projects")
    search.fill("BOOK")
    expect(mine.get_by_role("link")).to_have_count(1)
    search.fill("no such thing")
    expect(page.get_by_text("No project fits “no such thing”.")).to_be_visible()
    search.fill("")

    def menu(title: str, item: str) -> None:
        page.get_by_role("button", name=f"More for {title}", exact=True).click()
        page.get_by_role("menuitem", name=item).click()

    menu("Weather", "Rename…")
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Title").fill("Wetter & <b>Wind</b> 🎈")
    dialog.get_by_role("button", name="Rename").click()
    expect(mine.get_by_text("Wetter & <b>Wind</b> 🎈", exact=True)).to_be_visible()

    menu("Recipes", "Fork…")
    dialog.get_by_label("Title of the copy").fill("More recipes")
    dialog.get_by_role("button", name="Fork").click()
    expect(mine.get_by_role("link")).to_have_count(8)
    expect(mine.get_by_text("More recipes", exact=True)).to_be_visible()

    menu("Notes", "Delete…")
    expect(dialog.get_by_role("heading")).to_have_text("Delete “Notes”?")
    ana.pictures("delete")
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_be_hidden()
    expect(mine.get_by_role("link")).to_have_count(8)
    menu("Notes", "Delete…")
    dialog.get_by_role("button", name="Delete project").click()
    expect(mine.get_by_role("link")).to_have_count(7)
    assert "Notes" not in [p["title"] for p in ana.ok("GET", "/api/projects")]


def test_files_and_folders(person: Make, tmp_path: Path) -> None:
    ana = person("ana").join()
    project = ana.project()
    page = ana.enter(project).page
    dialog = page.get_by_role("dialog")

    def answer(text: str, button: str) -> None:
        dialog.get_by_role("textbox").fill(text)
        dialog.get_by_role("button", name=button).click()
        expect(dialog).to_be_hidden()

    page.get_by_role("button", name="New folder").click()
    answer("my src", "Create")
    ana.tree_menu("my src", "New file…")
    answer("über 🎈.py", "Create")
    ana.sees("my src/über 🎈.py", "")
    ana.write_at_end("my src/über 🎈.py", "# hello")

    # names that cannot be, and one that is there already
    page.get_by_role("button", name="New file").click()
    for bad in ("..", "a/../../b", ""):
        dialog.get_by_role("textbox").fill(bad)
        dialog.get_by_role("button", name="Create").click()
        expect(dialog.get_by_role("alert")).not_to_be_empty()
    page.keyboard.press("Escape")
    ana.tree_item("main.py").focus()
    page.get_by_role("button", name="New file").click()
    answer("main.py", "Create")
    expect(page.get_by_text("“main.py” is there already.")).to_be_visible()

    # a renamed file keeps its tab, its text, and what is typed on
    ana.tree_item("über 🎈.py").focus()
    page.keyboard.press("F2")
    expect(dialog.get_by_role("textbox")).to_be_focused()
    page.keyboard.type("hallo")  # over the name, its ending stays
    page.keyboard.press("Enter")
    ana.sees("my src/hallo.py", "# hello")
    ana.write_at_end("my src/hallo.py", " again")
    ana.tree_menu("hallo.py", "Move…")
    answer("hallo.py", "Move")
    ana.sees("hallo.py", "# hello again")
    ana.durable()
    assert ana.read(project, "hallo.py") == "# hello again"

    # deleted after a question
    ana.tree_item("my src").focus()
    page.keyboard.press("Delete")
    dialog.get_by_role("button", name="Delete folder").click()
    expect(ana.tree_item("my src")).to_be_hidden()
    ana.tree_menu("hallo.py", "Delete…")
    dialog.get_by_role("button", name="Cancel").click()
    expect(ana.tree_item("hallo.py")).to_be_visible()
    ana.tree_menu("hallo.py", "Delete…")
    dialog.get_by_role("button", name="Delete file").click()
    expect(ana.tree_item("hallo.py")).to_be_hidden()
    expect(ana.editor("hallo.py")).to_be_hidden()

    # up and down again, byte for byte
    data = bytes(range(256)) * 40
    (tmp_path / "some data.bin").write_bytes(data)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload files").click()
    chooser.value.set_files(tmp_path / "some data.bin")
    ana.tree_item("some data.bin").click()
    expect(page.get_by_role("heading", name="Not a text file")).to_be_visible()
    ana.pictures("binary")
    with page.expect_download() as download:
        ana.tree_menu("some data.bin", "Download")
    assert Path(download.value.path()).read_bytes() == data


def test_a_file_renamed_under_somebody_who_types(person: Make) -> None:
    """The cursor, undo and the text on its way stay where they are; the language is the new name's."""
    ana, ben = person("ana").join(), person("ben").join()
    project = ana.project()
    ana.ok("PUT", f"/api/projects/{project}/members/{ben.name}", {"role": "editor"})
    ana.enter(project)
    ben.enter(project)
    ana.put(project, "main.py", "x = 1\n" * 80)
    for one in (ana, ben):
        until(one.page, lambda one=one: "def greet" not in one.text("main.py"))
    ana.write_at_end("main.py", "one two")
    ben.call("PATCH", f"/p/{project}/api/contents/main.py", {"path": "page.html"})
    for letter in " three four":
        ana.page.keyboard.type(letter, delay=60)
    expect(ana.editor("page.html")).to_be_focused()
    ana.page.keyboard.type(" five")
    until(ana.page, lambda: ana.read(project, "page.html").endswith("x = 1\none two three four five"))
    expect(ana.status.get_by_text("HTML", exact=True)).to_be_visible()

    # goes on together under the new name, over a new connection as well
    ben.write_at_end("page.html", " six")
    ana.sees("page.html", "four five six")
    ana.expect_outage()
    ben.expect_outage()
    for pid in processes("pod_runtime.worker", project):
        os.kill(pid, signal.SIGKILL)
    ana.page.keyboard.press("Control+End")
    ana.page.keyboard.type(" seven")
    ben.sees("page.html", "four five six seven")
    expect(ana.tree_item("main.py")).to_be_hidden()
    while " five" in ana.text("page.html"):
        ana.page.keyboard.press("Control+z")
    ana.sees("page.html", " six")


def test_a_file_deleted_under_an_open_editor(person: Make) -> None:
    ana = person("ana").join()
    project = ana.project()
    page = ana.enter(project).page
    ana.write_at_end("main.py", "# worth keeping")
    ana.durable()
    ana.new_terminal()
    ana.type_in_terminal("1", "rm main.py\n")
    expect(page.get_by_role("heading", name="“main.py” is deleted")).to_be_visible()
    ana.pictures("deleted")
    page.get_by_role("button", name="Restore what was open here").click()
    ana.sees("main.py", "# worth keeping")
    assert "# worth keeping" in ana.read(project, "main.py")


def test_a_file_deleted_while_somebody_writes_without_connection(person: Make) -> None:
    """What was not sent stays on the page, which says so; a new file in its place is not overwritten."""
    ana, ben = person("ana").join(), person("ben").join()
    cable = ana.cable()
    project = ana.project()
    ana.ok("PUT", f"/api/projects/{project}/members/{ben.name}", {"role": "editor"})
    ana.enter(project)
    ana.sees("main.py", "def greet")
    cable.pull()
    ana.write_at_end("main.py", "# never sent")
    expect(ana.status.get_by_text("not saved yet")).to_be_visible()
    ben.ok("DELETE", f"/p/{project}/api/contents/main.py")
    cable.plug()
    page = ana.page
    expect(page.get_by_role("heading", name="“main.py” is deleted")).to_be_visible()
    expect(page.get_by_text("it is only here")).to_be_visible()
    expect(ana.status.get_by_text("not saved yet")).to_be_visible()

    # somebody makes another file of that name: the person chooses
    ben.put(project, "main.py", "another = 1\n")
    mine = page.get_by_role("textbox", name="Your text")
    expect(mine).to_contain_text("# never sent")
    assert ben.read(project, "main.py") == "another = 1\n"


def test_keyboard_tabs_and_theme(person: Make) -> None:
    ana = person("ana").join()
    page = ana.enter(ana.project()).page
    tabs = page.get_by_role("tablist", name="Open files").get_by_role("tab")
    expect(tabs).to_have_count(1)

    # quick open, by keys alone
    page.keyboard.press("Control+p")
    box = page.get_by_role("combobox", name="Find a file by name")
    expect(box).to_be_focused()
    expect(page.get_by_role("dialog", name="Find a file").get_by_role("option")).to_have_count(4)
    ana.pictures("quick-open")
    page.keyboard.type("rdme")
    expect(page.get_by_role("dialog", name="Find a file").get_by_role("option")).to_have_count(1)
    page.keyboard.press("Enter")
    expect(ana.editor("README.md")).to_be_focused()
    expect(tabs).to_have_count(2)
    page.keyboard.type("typed at once")
    ana.sees("README.md", "typed at once")

    # tabs by arrows, closed by Delete
    tabs.nth(1).focus()
    page.keyboard.press("ArrowLeft")
    expect(tabs.nth(0)).to_be_focused()
    expect(tabs.nth(0)).to_have_attribute("aria-selected", "true")
    expect(ana.editor("main.py")).to_be_visible()
    page.keyboard.press("Delete")
    expect(tabs).to_have_count(1)
    expect(tabs.first).to_contain_text("README.md")

    # the tree by arrows and letters
    ana.tree_item(".gitignore").focus()
    page.keyboard.press("m")
    expect(ana.tree_item("main.py")).to_be_focused()
    page.keyboard.press("Enter")
    expect(ana.editor("main.py")).to_be_focused()

    # panels
    files = page.get_by_role("region", name="Files")
    panel = page.get_by_role("region", name="Output and terminals")
    page.keyboard.press("Control+b")
    expect(files).to_be_hidden()
    page.keyboard.press("Control+b")
    expect(files).to_be_visible()
    page.keyboard.press("Control+`")
    expect(ana.terminal("1")).to_be_focused()
    page.keyboard.press("Control+`")
    expect(panel).to_be_hidden()

    # undo takes back one's own edit; F5 runs, Shift+F5 stops
    ana.editor("main.py").focus()
    page.keyboard.press("Control+End")
    page.keyboard.type("# oops")
    ana.sees("main.py", "# oops")
    page.keyboard.press("Control+z")
    until(page, lambda: "# oops" not in ana.text("main.py"))
    page.keyboard.press("F5")
    expect(ana.output).to_contain_text("What is your name?")
    page.keyboard.press("Shift+F5")
    expect(page.get_by_role("button", name="Run", exact=True)).to_be_enabled()

    page.keyboard.press("F1")
    expect(page.get_by_role("dialog", name="Shortcuts")).to_be_visible()
    ana.pictures("shortcuts")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()

    # the theme is chosen once and for all pages
    page.get_by_role("button", name="Your account").click()
    page.get_by_role("menuitem", name="Dark").click()
    expect(page.locator("html[data-theme=dark]")).to_be_attached()
    page.reload()
    ana.connected()
    expect(page.locator("html[data-theme=dark]")).to_be_attached()
    page.goto("/account")
    expect(page.locator("html[data-theme=dark]")).to_be_attached()


def test_on_a_phone(person: Make) -> None:
    ana = person("ana", viewport=PHONE, has_touch=True, is_mobile=True).join()
    project = ana.project()
    page = ana.page
    page.goto(f"/projects/{project}")
    panes = page.get_by_role("navigation", name="Panes")
    ana.sees("main.py", "def greet")
    panes.get_by_role("button", name="Files").tap()
    ana.tree_item("README.md").tap()
    expect(ana.editor("README.md")).to_be_visible()
    ana.write_at_end("README.md", "on the way")
    ana.sees("README.md", "on the way")
    ana.durable()
    until(page, lambda: "on the way" in ana.read(project, "README.md"))
    panes.get_by_role("button", name="Terminal").tap()
    ana.type_in_terminal("1", "cat README.md\n")
    ana.terminal_shows("on the way")
    ana.picture("phone-terminal")
    panes.get_by_role("button", name="Run").tap()
    expect(ana.output).to_contain_text("What is your name?")
    page.get_by_role("textbox", name=re.compile("Input for the program|What is your name")).fill("Ana")
    page.keyboard.press("Enter")
    expect(ana.output).to_contain_text("Hello, Ana!")
    ana.picture("phone-run")
    panes.get_by_role("button", name="Preview").tap()
    expect(page.get_by_text("Nothing is listening yet")).to_be_visible()
    ana.picture("phone-preview")
    for path in (f"/projects/{project}", "/", "/account"):
        page.goto(path)
        page.get_by_role("heading", level=1).first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path


def test_places_that_are_not_there(person: Make) -> None:
    ana, ben = person("ana").join(), person("ben").join()
    project = ana.project()
    for path, words in [
        (f"/projects/{project}", "This project cannot be opened"),
        ("/projects/aaaaaaaaaaaaaaaa", "This project cannot be opened"),
        ("/invite/nothing-here", "This invitation does not work"),
        ("/no/such/place", "There is nothing at this address"),
        ("/admin", "This page is for administrators"),
    ]:
        ben.page.goto(path)
        expect(ben.page.get_by_role("heading", name=words)).to_be_visible()
        ben.pictures("missing" + path.rpartition("/")[0].replace("/", "-"))


def test_administration(person: Make, administrator: str) -> None:
    ana = person("ana").join()
    project, other = ana.project("python", "Ana's own"), ana.project("python", "Ana's other")
    ana.ok("POST", f"/api/projects/{other}/server")
    ana.enter(project)
    boss = person("boss")
    page = boss.page
    page.goto("/admin")
    log_in(boss, administrator)
    people = page.get_by_role("region", name="People")
    expect(people.get_by_role("row", name=re.compile(f"{ana.name}\\b"))).to_be_visible()
    boss.pictures("admin-people")
    page.get_by_role("searchbox", name="Search people").fill(ana.name)
    row = people.locator("tbody").get_by_role("row")
    expect(row).to_have_count(1)

    def act(item: str, button: str | None) -> None:
        page.get_by_role("button", name=f"More for {ana.name}").click()
        page.get_by_role("menuitem", name=item).click()
        if button:
            page.get_by_role("dialog").get_by_role("button", name=button).click()

    act("Make administrator…", "Make administrator")
    expect(row).to_contain_text("administrator")
    assert ana.ok("GET", "/api/user")["admin"] is True
    act("No longer administrator…", "Take it away")
    expect(row.get_by_text("administrator", exact=True)).to_be_hidden()

    # servers: whose, in which state; stopped and deleted from here
    page.get_by_role("button", name="Servers").click()
    servers = page.get_by_role("region", name="Servers")
    server = servers.locator("tbody").get_by_role("row").filter(has_text="Ana's own")
    expect(server).to_contain_text("ready")
    expect(server).to_contain_text(ana.name)
    boss.pictures("admin-servers")
    ana.expect_outage()
    page.get_by_role("button", name="Stop Ana's own").click()
    page.get_by_role("dialog").get_by_role("button", name="Stop server").click()
    expect(ana.page.get_by_text("The workspace has been stopped.")).to_be_visible()
    expect(server).to_have_count(0)
    assert ana.ok("GET", f"/api/projects/{project}")["server"]["state"] == "stopped"
    page.get_by_role("button", name="Delete Ana's other").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete project").click()
    expect(servers.get_by_text("Ana's other")).to_have_count(0)
    assert ana.call("GET", f"/api/projects/{other}")[0] == 404

    # disabled: out at once, and in again
    page.get_by_role("button", name="People").click()
    page.get_by_role("searchbox", name="Search people").fill(ana.name)
    expect(row).to_have_count(1)
    act("Disable…", "Disable")
    expect(row).to_contain_text("disabled")
    assert ana.call("GET", "/api/user")[0] in (401, 403)
    ana.page.goto("/login")
    log_in(ana, ana.name)
    expect(ana.page.get_by_text("This account is disabled.")).to_be_visible()
    act("Enable", None)
    expect(row).not_to_contain_text("disabled")
    log_in(ana, ana.name)
    expect(ana.page.get_by_role("heading", name=f"Hello, {ana.name}")).to_be_visible()


@contextmanager
def foreign_page(frame: str) -> Iterator[int]:
    """A site of somebody else that frames an address; gives its port."""
    text = (
        "<!doctype html><title>A blog</title><body style='font:16px sans-serif;margin:24px'>"
        f"<h1>A blog</h1><iframe src='{frame}' width='100%' height='480' title='embedded'></iframe>"
    ).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_embedded_in_another_site(person: Make, hub: HubProcess) -> None:
    ana, reader = person("ana").join(), person("reader")
    reader.noise.append(re.compile("frame-ancestors"))
    project = ana.project("static", "My page")
    page = ana.enter(project).page
    ana.run()
    heading = page.frame_locator("iframe[title^='Preview of']").get_by_role("heading", name="My page")
    expect(heading).to_be_visible(timeout=60_000)
    with foreign_page(f"{hub.url}/embed/{project}?view=both&file=index.html") as port:
        site, other = f"http://localhost:{port}", f"http://127.0.0.1:{port}"
        framed = reader.page.frame_locator("iframe[title=embedded]")

        def refused(address: str) -> None:
            """The browser shows nothing of the project."""
            with reader.page.expect_console_message(lambda m: "frame-ancestors" in m.text):
                reader.page.goto(address)
            expect(framed.get_by_text("My page")).to_have_count(0)

        refused(site)  # not yet allowed

        # the owner allows the site, and forgets to make the project public
        page.get_by_role("button", name="Share", exact=True).click()
        share = page.get_by_role("dialog")
        share.get_by_text("Embedding and public ports").click()
        share.get_by_label("Sites that may embed it").fill(site)
        share.get_by_label("Public ports").fill("8080")
        share.get_by_role("button", name="Save").click()
        expect(page.get_by_text("Saved.")).to_be_visible()
        ana.pictures("share-embed")
        settings = ana.ok("GET", f"/api/projects/{project}")["settings"]
        assert settings["public_ports"] == [8080] and settings["embed_origins"] == [site]
        reader.page.goto(site)
        expect(framed.get_by_text("This project is not public, or it does not exist.")).to_be_visible()

        share.get_by_label("Public", exact=False).first.check()
        expect(page.get_by_text("Everybody with the address can look at it now.")).to_be_visible()
        page.keyboard.press("Escape")
        reader.page.goto(site)
        editor = framed.get_by_role("textbox", name="Editor of index.html, read-only")
        expect(editor).to_contain_text("Change a file, and this preview follows.")
        inner = framed.frame_locator("iframe[title^='Preview of']")
        expect(inner.get_by_role("heading", name="My page")).to_be_visible(timeout=60_000)
        reader.pictures("embed")

        # live, and read-only
        ana.find("index.html")
        ana.editor("index.html").focus()
        page.keyboard.press("Control+Home")
        page.keyboard.insert_text("<!-- live -->\n")
        expect(editor).to_contain_text("<!-- live -->")
        editor.focus()
        reader.page.keyboard.type("vandalism")
        page.keyboard.insert_text("<!-- after -->\n")
        expect(editor).to_contain_text("<!-- after -->")
        ana.durable()
        assert "vandalism" not in ana.read(project, "index.html")

        refused(other)  # another origin, though of the same machine
    # what is not the embed is framed by nobody
    for path in ("/", f"/projects/{project}", "/login", "/admin"):
        with foreign_page(hub.url + path) as port:
            refused(f"http://localhost:{port}")


def _axe(page: Page) -> list[str]:
    page.evaluate(AXE.read_text())
    found = page.evaluate(
        "axe.run(document, {resultTypes: ['violations'], iframes: false,"
        " runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']})"
    )
    return [
        f"{v['id']} ({v['impact']}): {n['html'][:160]} {n.get('failureSummary', '')}"
        for v in found["violations"]
        for n in v["nodes"]
    ]


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not among the page's packages")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(person: Make, administrator: str, scheme: str) -> None:
    ana = person("ana", color_scheme=scheme)
    page = ana.page
    wrong: dict[str, list[str]] = {}

    def check(name: str) -> None:
        if found := _axe(page):
            wrong[name] = found

    page.goto("/signup")
    page.get_by_role("heading", name="Create your account").wait_for()
    check("sign-up")
    ana.join()
    page.goto("/")
    page.get_by_role("group", name="Templates").get_by_role("button").first.wait_for()
    check("dashboard, empty")
    project = ana.project()
    page.reload()
    page.get_by_role("heading", name="Your projects").wait_for()
    check("dashboard")
    page.get_by_role("button", name="New project").click()
    page.get_by_role("dialog").wait_for()
    check("new project")
    page.get_by_role("button", name="Import an archive").click()
    check("import an archive")
    ana.enter(project)
    ana.sees("main.py", "def greet")
    ana.new_terminal()
    ana.terminal_shows(r"\$")
    check("IDE")
    page.get_by_role("button", name="Share", exact=True).click()
    page.get_by_role("dialog").get_by_text("Embedding and public ports").wait_for()
    check("share")
    page.goto("/account")
    page.get_by_role("heading", name="API tokens").wait_for()
    check("account")
    page.context.clear_cookies()
    page.goto("/admin")
    log_in(ana, administrator)
    page.get_by_role("region", name="People").get_by_role("row").nth(1).wait_for()
    check("people")
    page.get_by_role("button", name="Servers").click()
    page.get_by_role("region", name="Servers").get_by_role("row").nth(1).wait_for()
    check("servers")
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    (ARTIFACTS / f"axe-{scheme}.txt").write_text(
        "\n".join(f"{k}: {line}" for k, v in wrong.items() for line in v)
    )
    assert not wrong

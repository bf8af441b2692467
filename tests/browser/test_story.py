"""The story in a real browser: two people make something together, a third looks on, nothing gets lost."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable

import pytest
from playwright.sync_api import Route, expect

from tests.browser.people import Person, until
from tests.harness import HubProcess, processes

pytestmark = pytest.mark.browser
Make = Callable[..., Person]
TICKS = """\
import itertools, time
for n in itertools.count():
    print('tick', n, flush=True)
    time.sleep(0.1)
"""


def together(person: Make, template: str = "python") -> tuple[Person, Person, str]:
    """Ana and Ben, both in the IDE of Ana's project."""
    ana, ben = person("ana").join(), person("ben").join()
    project = ana.project(template)
    ana.ok("PUT", f"/api/projects/{project}/members/{ben.name}", {"role": "editor"})
    ana.enter(project)
    ben.enter(project)
    return ana, ben, project


def workspace_pids(project: str) -> set[int]:
    return set(processes("pod_runtime.", project))


def test_from_sign_up_to_a_program_of_two(person: Make) -> None:
    ana, ben = person("ana"), person("ben")
    # Ana is the first here: the address leads her to sign-up, and she becomes the administrator
    ana.page.goto("/")
    expect(ana.page).to_have_url(re.compile("/signup"))
    ana.pictures("sign-up")
    ana.sign_up()
    expect(ana.page.get_by_role("heading", name=f"Hello, {ana.name}")).to_be_visible()
    ana.page.get_by_role("button", name="Your account").click()
    expect(ana.page.get_by_role("menuitem", name="Administration")).to_be_visible()
    ana.page.keyboard.press("Escape")

    # a project from a template card of the empty dashboard, and its start with progress
    cards = ana.page.get_by_role("group", name="Templates")
    expect(cards.get_by_role("button")).to_have_count(7)
    ana.pictures("dashboard-empty")
    cards.get_by_role("button", name=re.compile("^Python")).first.click()
    dialog = ana.page.get_by_role("dialog", name="New project")
    dialog.get_by_label("Title").fill("Greetings")
    ana.pictures("new-project")
    held: list[Route] = []
    ana.page.route("**/api/projects/*/server", lambda route: held.append(route))
    dialog.get_by_role("button", name="Create project").click()
    expect(ana.page.get_by_role("progressbar", name="Start of the workspace")).to_be_visible()
    until(ana.page, lambda: held)
    ana.pictures("start")
    held[0].continue_()
    ana.connected()
    ana.page.unroute("**/api/projects/*/server")
    project = ana.page.url.rpartition("/")[2]

    # it opens with its main file; what she writes is saved, and durable soon
    ana.sees("main.py", "def greet(name: str)")
    ana.write_at_end("main.py", "# Ana was here")
    ana.durable()
    assert "# Ana was here" in ana.read(project, "main.py")

    # Ben comes by a link, with an account that he makes on the way
    ana.page.get_by_role("button", name="Share", exact=True).click()
    share = ana.page.get_by_role("dialog", name="Share “Greetings”")
    share.get_by_role("button", name="Make a link").click()
    link = share.get_by_label("Invitation link").input_value()
    ana.pictures("share")
    ana.page.keyboard.press("Escape")
    ben.page.goto(link)
    expect(ben.page.get_by_role("heading", name=f"{ana.name} invites you to “Greetings”")).to_be_visible()
    ben.pictures("invite")
    ben.page.get_by_role("link", name="Create an account and join").click()
    ben.sign_up()
    ben.page.get_by_role("button", name="Join the project").click()
    ben.connected()
    ben.sees("main.py", "# Ana was here")

    # each sees that the other is there, and where
    for one, other in ((ana, ben), (ben, ana)):
        here = one.page.get_by_role("group", name="Who is here")
        expect(here.get_by_role("button", name=re.compile(f"^{other.name} is in main.py"))).to_be_visible()
        expect(one.status.get_by_text("2 people")).to_be_visible()
    ben.editor("main.py").click()
    expect(ana.page.locator(".cm-ySelectionInfo").get_by_text(ben.name)).to_be_attached()
    ana.editor("main.py").click()
    expect(ben.page.locator(".cm-ySelectionInfo").get_by_text(ana.name)).to_be_attached()

    # both type at the same time, key by key
    ana.editor("main.py").focus()
    ana.page.keyboard.press("Control+Home")
    ana.page.keyboard.insert_text("# \n")
    ana.page.keyboard.press("ArrowUp")
    ana.page.keyboard.press("End")
    ben.write_at_end("main.py", "\n# ")
    for a, b in zip("from the top", "from the end", strict=True):
        ana.page.keyboard.type(a)
        ben.page.keyboard.type(b)
    for one in (ana, ben):
        one.sees("main.py", "# from the top\n", "\n# from the end")
    until(ana.page, lambda: ana.text("main.py") == ben.text("main.py"))
    ana.durable()
    assert ana.read(project, "main.py").rstrip("\n") == ana.text("main.py").rstrip("\n")


def test_a_shared_terminal_and_a_run_that_asks(person: Make) -> None:
    ana, ben, project = together(person)

    ana.new_terminal()
    ana.type_in_terminal("1", "echo from-$((40+2))\n")
    ana.terminal_shows(r"(?m)^from-42$")
    ben.show_terminal("1")
    ben.terminal_shows(r"(?m)^from-42$")
    ben.type_in_terminal("1", "touch by-ben && echo ben-$((1+1))\n")
    ana.terminal_shows(r"(?m)^ben-2$")
    expect(ana.tree_item("by-ben")).to_be_visible()
    expect(ben.tree_item("by-ben")).to_be_visible()

    # Ana runs it, Ben answers it, both see all
    ana.run()
    for one in (ana, ben):
        one.page.get_by_role("tab", name="Output").click()
        expect(one.output).to_contain_text("What is your name?")
        expect(one.page.get_by_role("button", name="Stop", exact=True)).to_be_visible()
    ben.page.get_by_role("textbox", name=re.compile("Input for the program|What is your name")).fill("Ben")
    ben.page.keyboard.press("Enter")
    for one in (ana, ben):
        expect(one.output).to_contain_text("Hello, Ben!")
        expect(one.output).to_contain_text("exit code 0")
        expect(one.page.get_by_role("button", name="Run", exact=True)).to_be_enabled()

    # a program without an end: live output, and Stop
    ana.put(project, "main.py", TICKS)
    ana.sees("main.py", "itertools.count")
    ben.run()
    expect(ana.output).to_contain_text("tick 3")
    ana.page.get_by_role("button", name="Stop", exact=True).click()
    for one in (ana, ben):
        expect(one.page.get_by_role("button", name="Run", exact=True)).to_be_enabled()
        expect(one.page.get_by_role("button", name="Stop", exact=True)).to_be_hidden()


def test_a_viewer_changes_nothing(person: Make) -> None:
    ana, vic = person("ana").join(), person("vic")
    project = ana.project()
    ana.enter(project)
    ana.new_terminal()
    ana.type_in_terminal("1", "echo seen-$((40+2))\n")
    ana.terminal_shows("seen-42")

    ana.page.get_by_role("button", name="Share", exact=True).click()
    share = ana.page.get_by_role("dialog")
    share.get_by_label("Role", exact=True).first.select_option("viewer")
    share.get_by_role("button", name="Make a link").click()
    link = share.get_by_label("Invitation link").input_value()
    ana.page.keyboard.press("Escape")
    vic.page.goto(link)
    vic.page.get_by_role("link", name="Create an account and join").click()
    vic.sign_up()
    vic.page.get_by_role("button", name="Join the project").click()
    vic.connected()
    vic.sees("main.py", "def greet")
    expect(vic.page.get_by_text("You are a viewer: read-only")).to_be_visible()

    # sees what is typed, and cannot type
    ana.write_at_end("main.py", "# for all to see")
    vic.sees("main.py", "# for all to see")
    vic.write_at_end("main.py", "# vandalism")
    expect(vic.page.get_by_role("button", name="New file")).to_have_count(0)
    expect(vic.page.get_by_role("button", name="New terminal")).to_have_count(0)
    run = vic.page.get_by_role("button", name="Run", exact=True)
    assert run.count() == 0 or run.is_disabled()
    vic.page.keyboard.press("F5")
    vic.show_terminal("1")
    vic.terminal_shows("seen-42")
    vic.type_in_terminal("1", "echo vandal-$((1+1))\n")
    ana.type_in_terminal("1", "echo after-$((2+3))\n")
    ana.terminal_shows("after-5")
    vic.terminal_shows("after-5")
    assert "vandal" not in ana.terminal_text()
    vic.pictures("viewer")

    # nor by calls of one's own
    refused = [
        ("PUT", "contents/main.py", {"type": "file", "format": "text", "content": "gone"}),
        ("POST", "contents/", {"type": "file"}),
        ("PATCH", "contents/main.py", {"path": "stolen.py"}),
        ("DELETE", "contents/main.py", None),
        ("POST", "terminals", {}),
        ("DELETE", "terminals/1", None),
        ("POST", "kernels", {"name": "program"}),
    ]
    for method, path, body in refused:
        assert vic.call(method, f"/p/{project}/api/{path}", body)[0] == 403, f"{method} {path}"
    for method, path, body in [
        ("PATCH", "", {"title": "mine"}),
        ("DELETE", "", None),
        ("DELETE", "/server", None),
        ("POST", "/invites", {"role": "editor", "expires_in": 60}),
        ("PUT", f"/members/{vic.name}", {"role": "owner"}),
    ]:
        assert vic.call(method, f"/api/projects/{project}{path}", body)[0] == 403, f"{method} {path}"
    ana.durable()
    text = ana.read(project, "main.py")
    assert "vandalism" not in text and "# for all to see" in text
    assert not ana.ok("GET", f"/p/{project}/api/kernels")


@pytest.mark.parametrize(
    ("template", "file", "before", "after"),
    [
        ("flask", "templates/index.html", "Guest book", "Visitors"),
        ("react", "src/App.jsx", "Hello, React", "Hello, all"),
    ],
    ids=["flask", "react"],
)
def test_a_preview_that_follows_the_edits(
    person: Make, template: str, file: str, before: str, after: str
) -> None:
    ana, ben, _ = together(person, template)
    ana.run()
    frame = ana.page.frame_locator("iframe[title^='Preview of']")
    expect(frame.get_by_role("heading", name=before)).to_be_visible(timeout=60_000)
    others = ben.page.frame_locator("iframe[title^='Preview of']")
    expect(others.get_by_role("heading", name=before)).to_be_visible(timeout=60_000)

    ana.find(file)
    ana.sees(file, before)
    ana.new_terminal()
    ana.type_in_terminal("1", "ls\n")
    ben.find(file)
    ben.sees(file, before)
    # by the search panel: Ben replaces one word for the other
    ben.editor(file).focus()
    ben.page.keyboard.press("Control+f")
    ben.page.get_by_role("textbox", name="Find").fill(before)
    ben.page.get_by_role("textbox", name="Replace").fill(after)
    ben.page.get_by_role("button", name="replace all").click()
    ben.page.keyboard.press("Escape")
    ana.sees(file, after)
    for page in (frame, others):
        expect(page.get_by_role("heading", name=after)).to_be_visible(timeout=60_000)
    if template == "react":
        ben.editor(file).click()
        ana.pictures("ide")


def test_all_is_there_after_a_reload(person: Make) -> None:
    ana = person("ana").join()
    project = ana.project()
    ana.enter(project)
    ana.open("README.md")
    ana.open("codevo.toml")
    ana.new_terminal()
    ana.type_in_terminal("1", "echo kept-$((40+2))\n")
    ana.terminal_shows("kept-42")
    ana.write_at_end("codevo.toml", "# kept")
    ana.durable()
    ana.page.reload()
    ana.connected()
    ana.sees("codevo.toml", "# kept")
    tabs = ana.page.get_by_role("tablist", name="Open files").get_by_role("tab")
    expect(tabs).to_contain_text(["main.py", "README.md", "codevo.toml"])
    ana.terminal_shows("kept-42")


def test_the_hub_is_killed_and_the_page_heals(person: Make, hub: HubProcess) -> None:
    ana, ben, project = together(person)
    ana.new_terminal()
    ana.type_in_terminal("1", "MARK=here; echo before-$((40+2))\n")
    ana.terminal_shows("before-42")
    ana.write_at_end("main.py", "# before")
    ben.sees("main.py", "# before")
    pids = workspace_pids(project)
    assert pids

    for one in (ana, ben):
        one.expect_outage()
    hub.kill()
    expect(ana.page.get_by_text("The connection to Codevo is lost.")).to_be_visible()
    expect(ana.status.get_by_text(re.compile("^reconnecting"))).to_be_visible()
    ana.write_at_end("main.py", ", meanwhile Ana", delay=20)
    ben.editor("main.py").focus()
    ben.page.keyboard.press("Control+Home")
    ben.page.keyboard.type("# meanwhile Ben", delay=20)
    ben.page.keyboard.press("Enter")
    expect(ana.status.get_by_text("not saved yet")).to_be_visible()
    ana.pictures("hub-lost")
    assert workspace_pids(project) == pids, "the workspace goes on without its hub"
    hub.start()

    # nobody touches anything: the pages heal by themselves
    for one in (ana, ben):
        one.connected()
        one.sees("main.py", "# before, meanwhile Ana", "# meanwhile Ben\n")
        expect(one.page.get_by_text("The connection to Codevo is lost.")).to_be_hidden()
    assert workspace_pids(project) == pids, "adopted, not started anew"
    until(ana.page, lambda: ana.text("main.py") == ben.text("main.py"))
    ana.type_in_terminal("1", "echo $MARK-still\n")
    ana.terminal_shows("here-still")
    ana.terminal_shows("before-42")
    ana.durable()
    text = ana.read(project, "main.py")
    assert text.count("meanwhile Ana") == text.count("meanwhile Ben") == 1


def test_a_stopped_workspace_comes_back(person: Make) -> None:
    ana, ben, project = together(person)
    for one in (ana, ben):
        one.expect_outage()
    ana.write_at_end("main.py", "# before the stop")
    ben.sees("main.py", "# before the stop")

    dashboard = ana.context.new_page()
    dashboard.goto("/")
    dashboard.get_by_role("button", name="More for Test").click()
    dashboard.get_by_role("menuitem", name="Stop the workspace").click()
    expect(dashboard.get_by_text("stopped", exact=True)).to_be_visible(timeout=60_000)
    assert not workspace_pids(project)
    for one in (ana, ben):
        expect(one.page.get_by_text("The workspace has been stopped. Everything is saved.")).to_be_visible()
    ana.pictures("stopped")
    ben.write_at_end("main.py", ", typed while stopped")
    expect(ben.status.get_by_text("not saved yet")).to_be_visible()

    ana.page.get_by_role("button", name="Start it again").click()
    for one in (ana, ben):
        one.connected()
        one.sees("main.py", "# before the stop, typed while stopped")
    ben.durable()
    assert "# before the stop, typed while stopped" in ana.read(project, "main.py")

    # and from the dashboard, tomorrow
    ana.page.close()
    ana.page = dashboard
    dashboard.get_by_role("link", name=re.compile("^Test")).click()
    ana.connected()
    ana.sees("main.py", "# before the stop, typed while stopped")


def test_a_cut_network_loses_nothing(person: Make) -> None:
    ana, ben, project = together(person)
    ana.expect_outage()
    ana.write_at_end("main.py", "# Ana: ")
    ana.context.set_offline(True)
    expect(ana.status.get_by_text("offline", exact=True)).to_be_visible()
    ana.page.keyboard.type("typed in the tunnel", delay=20)
    expect(ana.status.get_by_text("not saved yet")).to_be_visible()
    ben.editor("main.py").focus()
    ben.page.keyboard.press("Control+Home")
    ben.page.keyboard.type("# Ben at his desk")
    ben.page.keyboard.press("Enter")
    ben.sees("main.py", "# Ben at his desk\n")
    ana.context.set_offline(False)
    ana.connected()
    for one in (ana, ben):
        one.sees("main.py", "# Ana: typed in the tunnel", "# Ben at his desk\n")
    until(ana.page, lambda: ana.text("main.py") == ben.text("main.py"))
    ana.durable()
    assert ana.read(project, "main.py").count("typed in the tunnel") == 1


@pytest.mark.parametrize("part", ["worker", "runner"])
def test_a_killed_part_of_the_workspace_comes_back(person: Make, part: str) -> None:
    ana, ben, project = together(person)
    for one in (ana, ben):
        one.expect_outage()
    ana.write_at_end("main.py", "# one ")
    [*pids] = processes(f"pod_runtime.{part} ", project)
    assert pids
    for number, word in enumerate(("two ", "three ", "four ")):
        ana.page.keyboard.type(word, delay=30)
        if number == 0:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
    until(ana.page, lambda: set(processes(f"pod_runtime.{part} ", project)) - set(pids))
    for one in (ana, ben):
        one.connected()
        one.sees("main.py", "# one two three four")
    ben.write_at_end("main.py", "five")
    ana.sees("main.py", "# one two three four five")
    ana.durable()
    assert ana.read(project, "main.py").count("# one two three four five") == 1
    if part == "runner":
        ana.new_terminal()
        expect(ana.page.get_by_role("tab", name=re.compile("^Terminal"))).to_have_count(1)
        ana.terminal_shows(r"\$")

"""History for people: versions of a file with who and when, a way back that others see, checkpoints."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.browser.people import DESKTOP, PHONE, Person, until
from tests.browser.test_page import AXE, _axe

pytestmark = pytest.mark.browser
Make = Callable[..., Person]
MAIN = "one = 1\ntwo = 2\nthree = 3\n"


def together(person: Make, role: str = "editor") -> tuple[Person, Person, str]:
    """Ana and Ben, both in the IDE of Ana's project; Ben with ``role``."""
    ana, ben = person("ana").join(), person("ben").join()
    project = ana.project()
    ana.ok("PUT", f"/api/projects/{project}/members/{ben.name}", {"role": role})
    ana.enter(project)
    ben.enter(project)
    return ana, ben, project


def history(page: Page, name: str = "main.py") -> Locator:
    return page.get_by_role("region", name=f"History of {name}")


def versions(page: Page) -> Locator:
    return page.get_by_role("listbox", name="Versions, newest first").get_by_role("option")


def version(page: Page, who: str) -> Locator:
    """The newest version of these people."""
    return versions(page).filter(has_text=who).first


def durable(one: Person, project: str) -> None:
    """Wait until everything is in the bucket, and so in the history."""
    one.durable()
    until(one.page, lambda: not one.ok("GET", f"/p/{project}/api/durability")["pending"])


def shows(one: Person, text: str, path: str = "main.py") -> None:
    """Wait until the editor holds this text and no other."""
    until(one.page, lambda: one.text(path) == text)


def accessible(page: Page) -> None:
    if AXE.is_file():
        assert not _axe(page)


def test_a_version_restored_before_the_eyes_of_another(person: Make) -> None:
    ana, ben, project = together(person)
    page = ana.page
    ana.put(project, "main.py", MAIN)
    for one in (ana, ben):
        one.sees("main.py", "three = 3")
    durable(ana, project)
    ana.write_at_end("main.py", "four = 4\n")
    durable(ana, project)
    ben.sees("main.py", "four = 4")
    ben.write_at_end("main.py", "five = 5\n")
    ana.sees("main.py", "five = 5")
    durable(ana, project)

    # who, when and how large, newest first; each side by side with the file as it is now
    ana.editor("main.py").focus()
    page.keyboard.press("Control+Shift+H")
    expect(version(page, ben.name)).to_be_visible()
    expect(versions(page).first).to_be_focused()
    expect(versions(page).first).to_contain_text(re.compile(rf"{ben.name}.*\d+ bytes", re.S))
    expect(history(page).get_by_text("no difference")).to_be_visible()
    page.keyboard.press("ArrowDown")
    expect(versions(page).nth(1)).to_be_focused()
    expect(versions(page).nth(1)).to_contain_text(ana.name)
    seq = versions(page).nth(1).get_attribute("data-seq")
    then, now = (
        page.get_by_role("textbox", name=name, exact=True) for name in ("This version", "The file now")
    )
    expect(then).not_to_contain_text("five")
    expect(now).to_contain_text("five = 5")
    expect(history(page).get_by_text("1 change", exact=True)).to_be_visible()
    accessible(page)
    ana.pictures("history")
    # nobody's cursor is here, and the other one types on
    ben.editor("main.py").focus()
    ben.page.keyboard.press("Control+Home")
    ben.page.keyboard.type("# Ben\n")
    expect(now).to_contain_text("# Ben")
    expect(history(page).get_by_text("2 changes", exact=True)).to_be_visible()
    history(page).get_by_role("button", name="Next change").click()
    page.keyboard.press("Shift+F7")

    # what the version itself changed
    history(page).get_by_label("Compare with").select_option("before")
    before = page.get_by_role("textbox", name="The version before")
    expect(before).to_contain_text("def greet")
    history(page).get_by_label("Compare with").select_option("now")

    # restored: an ordinary edit that Ben sees, one step of Ana's undo
    page.get_by_role("button", name="Restore this version").click()
    restored = MAIN + "four = 4\n"
    for one in (ana, ben):
        shows(one, restored)
    expect(ana.editor("main.py")).to_be_focused()
    page.keyboard.press("Control+z")
    for one in (ana, ben):
        shows(one, "# Ben\n" + restored + "five = 5\n")

    # from the file's menu, back by the toast, and what Ben typed meanwhile stays
    ana.tree_menu("main.py", "History")
    page.locator(f"[data-seq='{seq}']").click()
    page.get_by_role("button", name="Restore this version").click()
    until(ben.page, lambda: ben.text("main.py") == restored)
    ben.write_at_end("main.py", "six = 6\n")
    ana.sees("main.py", "six = 6")
    toast = page.get_by_role("status").filter(has_text="“main.py” is as it was")
    toast.get_by_role("button", name="Undo").last.click()
    for one in (ana, ben):
        one.sees("main.py", "# Ben", "five = 5", "six = 6")


def test_programs_deleted_files_and_files_that_are_no_text(person: Make) -> None:
    ana = person("ana").join()
    project = ana.project()
    page = ana.enter(project).page
    ana.sees("main.py", "def greet")
    durable(ana, project)
    ana.new_terminal()
    ana.terminal_shows(r"\$")
    ana.type_in_terminal(
        "1", "mkdir deep; echo from a program > deep/notes.txt; printf '\\0one' > data.bin\n"
    )
    expect(ana.tree_item("data.bin")).to_be_visible()
    durable(ana, project)

    ana.tree_item("deep").click()
    ana.tree_menu("notes.txt", "History")
    expect(versions(page).first).to_contain_text("Changed by a program")
    page.keyboard.press("Escape")
    expect(ana.editor("deep/notes.txt")).to_be_visible()

    # deleted with its folder, and found again by its name
    ana.tree_menu("deep", "Delete…")
    page.get_by_role("button", name="Delete folder").click()
    expect(ana.tree_item("deep")).to_be_hidden()
    durable(ana, project)
    page.keyboard.press("Control+p")
    quick = page.get_by_role("dialog", name="Find a file")
    quick.get_by_role("combobox").fill("deep/notes.txt")
    quick.get_by_role("option", name="History of “deep/notes.txt”").click()
    expect(versions(page).first).to_contain_text("deleted")
    expect(page.get_by_role("textbox", name="This version")).to_contain_text("from a program")
    accessible(page)
    ana.picture("history-deleted")
    page.get_by_role("button", name="Bring back").click()
    ana.sees("deep/notes.txt", "from a program")
    assert ana.read(project, "deep/notes.txt") == "from a program\n"

    # bytes: no difference is shown, they come back as they were
    two = base64.b64encode(b"\0two!").decode()
    ana.ok("PUT", f"/p/{project}/api/contents/data.bin", {"type": "file", "format": "base64", "content": two})
    durable(ana, project)
    ana.tree_menu("data.bin", "History")
    expect(versions(page)).to_have_count(2)
    versions(page).last.click()
    expect(history(page, "data.bin").get_by_text("Not shown here")).to_be_visible()
    with page.expect_download() as download:
        history(page, "data.bin").get_by_role("link", name="Download this version").click()
    assert download.value.path().read_bytes() == b"\0one"

    def data() -> bytes:
        return ana.context.request.get(f"/p/{project}/files/data.bin").body()

    page.get_by_role("button", name="Restore this version").click()
    until(page, lambda: data() == b"\0one")
    page.get_by_role("button", name="Undo").click()
    until(page, lambda: data() == b"\0two!")
    durable(ana, project)  # a commit would load the history again by itself

    # a path that nothing is known of, and a history that does not load at first
    page.keyboard.press("Control+p")
    quick.get_by_role("combobox").fill("never.txt")
    quick.get_by_role("option", name="History of “never.txt”").click()
    expect(page.get_by_text("Nothing is known of “never.txt”")).to_be_visible()

    def away(route: Route) -> None:
        route.fulfill(status=503, json={"detail": "The storage is away."})

    ana.expect_outage()
    page.route("**/api/history/**", away)
    ana.open("README.md")
    ana.status.get_by_role("button", name="History of this file").click()
    expect(history(page, "README.md").get_by_text("The storage is away.")).to_be_visible()
    ana.picture("history-away")
    page.unroute("**/api/history/**", away)
    history(page, "README.md").get_by_role("button", name="Try again").click()
    expect(versions(page)).not_to_have_count(0)


def test_checkpoints(person: Make) -> None:
    ana, ben, project = together(person)
    page = ana.page
    ana.put(project, "main.py", MAIN)
    for one in (ana, ben):
        one.sees("main.py", "three = 3")
    page.get_by_role("button", name="Checkpoints").click()
    dialog = page.get_by_role("dialog", name="Checkpoints of “Test”")
    name = dialog.get_by_role("textbox", name="Name of a new checkpoint")
    expect(name).to_be_focused()
    dialog.get_by_role("button", name="Create").click()
    expect(dialog.get_by_role("alert")).to_have_text("Give it a name.")
    page.keyboard.type("Before the demo")
    page.keyboard.press("Enter")
    mine = dialog.get_by_role("region", name="By name").get_by_role("listitem")
    expect(mine).to_contain_text(re.compile(rf"Before the demo.*{ana.name}", re.S))
    accessible(page)
    page.keyboard.press("Escape")

    # both go on: an edit, a new file, a deleted one
    ben.write_at_end("main.py", "four = 4\n")
    ana.sees("main.py", "four = 4")
    ana.put(project, "new.txt", "new")
    ana.ok("DELETE", f"/p/{project}/api/contents/README.md")
    expect(ben.tree_item("new.txt")).to_be_visible()
    expect(ben.tree_item("README.md")).to_be_hidden()

    page.get_by_role("button", name="Checkpoints").click()
    dialog.get_by_role("button", name="Restore “Before the demo”").click()
    question = page.get_by_role("dialog", name="Restore the project to “Before the demo”?")
    expect(question).to_contain_text("A checkpoint of the present state is taken first")
    question.get_by_role("button", name="Cancel").click()
    expect(question).to_be_hidden()
    assert "four" in ana.text("main.py")
    dialog.get_by_role("button", name="Restore “Before the demo”").click()
    question.get_by_role("button", name="Restore the project").click()
    expect(dialog.get_by_text("The project is as it was")).to_be_visible()
    for one in (ana, ben):
        shows(one, MAIN)
    expect(ben.tree_item("README.md")).to_be_visible()
    expect(ben.tree_item("new.txt")).to_be_hidden()
    ana.pictures("checkpoints")

    # the way back from there, by Ben, who may not delete
    ben.page.get_by_role("button", name="Checkpoints").click()
    his = ben.page.get_by_role("dialog", name="Checkpoints of “Test”")
    before = his.get_by_role("listitem").filter(has_text="Before restoring")
    expect(before).to_have_count(1)
    expect(his.get_by_role("button", name=re.compile("^Delete"))).to_have_count(0)
    before.get_by_role("button", name=re.compile("^Restore")).click()
    ben.page.get_by_role("button", name="Restore the project").click()
    ana.sees("main.py", "four = 4")
    expect(ana.tree_item("new.txt")).to_be_visible()

    dialog.get_by_role("button", name="Delete “Before the demo”").click()
    page.get_by_role("button", name="Delete checkpoint").click()
    expect(dialog.get_by_role("region", name="By name")).to_be_hidden()
    assert ana.read(project, "main.py") == MAIN + "four = 4\n"


def test_what_a_viewer_sees(person: Make) -> None:
    ana, ben, project = together(person, "viewer")
    page = ben.page
    ana.put(project, "main.py", MAIN)
    ana.sees("main.py", "three = 3")
    ana.ok("POST", f"/api/projects/{project}/checkpoints", {"name": "Only to look at"})
    durable(ana, project)

    page.set_viewport_size(PHONE)
    ben.sees("main.py", "three = 3")
    ben.status.get_by_role("button", name="History of this file").click()
    # the list first, then the difference, in one column
    version(page, ana.name).click()
    expect(history(page).get_by_text("no difference")).to_be_visible()
    history(page).get_by_label("Compare with").select_option("before")
    expect(page.get_by_role("textbox", name="This version")).to_contain_text("three = 3")
    ben.picture("history-viewer-phone")
    for word in ("Restore", "Restore this version"):
        expect(page.get_by_role("button", name=word)).to_have_count(0)
    history(page).get_by_role("button", name="All versions").click()
    expect(version(page, ana.name)).to_be_focused()
    page.keyboard.press("Escape")
    expect(ben.editor("main.py")).to_be_visible()

    page.set_viewport_size(DESKTOP)
    page.get_by_role("tab", name="main.py").click(button="right")
    page.get_by_role("menuitem", name="History").click()
    expect(versions(page).first).to_be_focused()
    page.keyboard.press("Control+Shift+H")
    expect(ben.editor("main.py")).to_be_visible()
    page.get_by_role("button", name="Checkpoints").click()
    dialog = page.get_by_role("dialog", name="Checkpoints of “Test”")
    expect(dialog.get_by_text("Only to look at")).to_be_visible()
    expect(dialog.get_by_role("textbox")).to_have_count(0)
    expect(dialog.get_by_role("button", name=re.compile("^(Restore|Delete|Create)"))).to_have_count(0)
    assert ben.call("POST", f"/api/projects/{project}/checkpoints", {"name": "mine"})[0] == 403

"""Search in all files: results as they come, the way to the place, filters, what is said without results."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from tests.browser.people import PHONE, Person, until
from tests.browser.test_page import AXE, _axe

pytestmark = pytest.mark.browser


def test_from_a_word_to_its_place(person: Callable[..., Person]) -> None:
    ana = person("ana").join()
    project = ana.project()
    ana.enter(project)
    ana.ok("PUT", f"/p/{project}/api/contents/src", {"type": "directory"})
    ana.put(project, "src/deep.py", "# 😀\n" + "pass\n" * 60 + "x = '😀 Needle'\nneedles = 1\n")
    ana.put(project, "notes.txt", "a needle\r\nin hay\nand\rmore\n")
    page = ana.page
    page.keyboard.press("Control+Shift+F")
    field = page.get_by_role("textbox", name="Search in all files")
    expect(field).to_be_focused()
    field.fill("needle")
    panel = page.get_by_role("region", name="Search in files")
    matches = panel.get_by_role("option")
    expect(matches).to_have_count(3)
    expect(panel.get_by_role("status")).to_contain_text("3 matches in 2 files")
    expect(panel.locator("mark").first).to_have_text("needle")
    ana.pictures("search")
    if AXE.is_file():
        assert not _axe(page)
    # the pictures changed the width of the window, so the panel was made anew
    expect(matches).to_have_count(3)
    # by keyboard to the place, which is selected
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    selected = "() => getSelection().toString()"
    until(page, lambda: page.evaluate(selected) == "Needle")
    page.keyboard.type("Thread")
    ana.sees("src/deep.py", "'😀 Thread'")
    # narrower
    panel.get_by_role("button", name="Match case").click()
    panel.get_by_role("button", name="Whole words").click()
    expect(matches).to_have_count(1)
    panel.get_by_role("textbox", name="Only in these files").fill("*.py")
    expect(panel.get_by_role("status")).to_contain_text("Nothing found")
    panel.get_by_role("button", name="Regular expression").click()
    field.fill("(")
    expect(panel.get_by_role("status")).to_contain_text("not a regular expression")
    field.fill(r"n\w+s|Thr\w+")
    expect(matches).to_have_count(2)
    panel.get_by_role("button", name="Back to the files").click()
    expect(ana.tree_item("notes.txt")).to_be_visible()
    # mixed ends of lines: what is typed lands where it is seen, and the rest keeps its own
    ana.open("notes.txt")
    ana.write_at_end("notes.txt", "end")
    until(page, lambda: ana.read(project, "notes.txt") == "a needle\r\nin hay\nand\rmore\nend")


def test_on_a_phone(person: Callable[..., Person]) -> None:
    ana = person("ana", viewport=PHONE, color_scheme="dark").join()
    project = ana.project()
    ana.enter(project)
    page = ana.page
    page.keyboard.press("Control+Shift+F")
    page.get_by_role("textbox", name="Search in all files").fill("greet")
    first = page.get_by_role("region", name="Search in files").get_by_role("option").first
    expect(first).to_be_visible()
    ana.picture("search-phone")
    first.click()
    expect(ana.editor("main.py")).to_be_visible()

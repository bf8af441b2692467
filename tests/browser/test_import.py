"""A project from an archive, by the page: chosen, dropped, refused, cancelled."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, Request, expect

from tests.browser.people import Person, until
from tests.codevo.archive_kit import Thing, folder, untar, zipped
from tests.harness import HubProcess

pytestmark = pytest.mark.browser
Make = Callable[..., Person]

_DROP = """([name, text]) => {
  const data = new DataTransfer();
  data.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name));
  const form = document.querySelector('[role=dialog] form');
  for (const kind of ['dragover', 'drop'])
    form.dispatchEvent(new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: data }));
}"""


def begin(one: Person) -> Page:
    one.page.goto("/")
    one.page.get_by_role("button", name="New project").click()
    one.page.get_by_role("button", name="Import an archive").click()
    return one.page


def test_an_archive_is_chosen_and_imported(person: Make, hub: HubProcess, tmp_path: Path) -> None:
    ana = person("ana").join()
    page = begin(ana)
    dialog = page.get_by_role("dialog", name="New project")
    submit = dialog.get_by_role("button", name="Import project")
    expect(submit).to_be_disabled()
    ana.pictures("import-empty")

    # what cannot be one is said before anything is sent
    wrong = tmp_path / "notes.txt"
    wrong.write_text("hello")
    dialog.locator("input[type=file]").set_input_files(wrong)
    expect(dialog.get_by_role("alert")).to_contain_text("neither a .zip nor a .tar.zst")
    expect(submit).to_be_disabled()

    # what the hub refuses it says, and another file can be chosen
    bad = tmp_path / "bad.zip"
    bad.write_bytes(zipped(Thing("ok", b"1"), Thing("../up", b"2")))
    dialog.locator("input[type=file]").set_input_files(bad)
    submit.click()
    expect(dialog.get_by_role("alert")).to_contain_text("climbs")
    ana.pictures("import-refused")
    dialog.get_by_role("button", name="Choose no file").click()
    expect(dialog.get_by_role("alert")).to_have_count(0)

    good = tmp_path / "Wetter & Wind 🎈.zip"
    good.write_bytes(
        zipped(Thing("hello.py", b"print('imported')\n"), Thing("sub/b.txt", b"b"), folder("out"))
    )
    dialog.locator("input[type=file]").set_input_files(good)
    expect(dialog.get_by_label("Title")).to_have_attribute("placeholder", "Wetter & Wind 🎈")
    ana.pictures("import-chosen")
    submit.click()
    page.wait_for_url(re.compile(r"/projects/[a-z2-7]{16}$"))
    ana.connected()
    ana.open("hello.py")
    ana.sees("hello.py", "print('imported')")
    expect(ana.tree_item("out")).to_be_visible()
    [found] = ana.ok("GET", "/api/projects")
    assert (found["title"], found["template"]) == ("Wetter & Wind 🎈", "imported")
    page.goto("/")
    expect(page.get_by_role("link", name=re.compile("Wetter & Wind 🎈"))).to_be_visible()

    # its download is an archive that can be imported
    page.get_by_role("button", name="More for Wetter & Wind 🎈").click()
    ana.pictures("import-menu")
    with page.expect_download() as download:
        page.get_by_role("menuitem", name="Download").click()
    assert download.value.suggested_filename == "Wetter & Wind 🎈.tar.zst"
    saved = tmp_path / "again.tar.zst"
    download.value.save_as(saved)
    assert {"hello.py", "sub/b.txt", "out"} <= set(untar(saved.read_bytes()))
    page.get_by_role("button", name="New project").click()
    page.get_by_role("button", name="Import an archive").click()
    dialog.locator("input[type=file]").set_input_files(saved)
    dialog.get_by_label("Title").fill("Once more")
    submit.click()
    page.wait_for_url(re.compile(r"/projects/[a-z2-7]{16}$"))
    ana.connected()
    ana.open("hello.py")
    ana.sees("hello.py", "print('imported')")


def test_an_archive_is_dropped_and_the_upload_cancelled(person: Make, hub: HubProcess) -> None:
    ana = person("ana").join()
    ana.expect_outage()  # what Chromium says of a request that it was told to end
    ana.page.goto("/")
    ana.page.get_by_role("button", name="New project").click()
    dialog = ana.page.get_by_role("dialog", name="New project")
    # the hub is far away: the page shows how it goes
    held: list[object] = []
    ana.page.route("**/api/projects?title=*", lambda route: held.append(route))
    requests: list[Request] = []
    ana.page.on("request", lambda r: requests.append(r) if "title=" in r.url else None)
    text = base64.b64encode(zipped(Thing("a.txt", b"1"))).decode()
    ana.page.evaluate(_DROP, ["dropped.zip", text])
    expect(dialog.get_by_text("dropped.zip")).to_be_visible()
    dialog.get_by_label("Title").fill("My drop")
    dialog.get_by_role("button", name="Import project").click()
    expect(dialog.get_by_role("button", name="Importing…")).to_be_disabled()
    expect(dialog.get_by_role("progressbar")).to_be_visible()
    ana.pictures("import-under-way")
    assert requests[0].headers["content-type"] == "application/zip" and "title=My+drop" in requests[0].url
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_have_count(0)
    until(ana.page, lambda: requests[0].failure is not None)
    ana.page.unroute_all()
    assert ana.ok("GET", "/api/projects") == []

    # and with the hub back, once more
    ana.page.get_by_role("button", name="New project").click()
    ana.page.evaluate(_DROP, ["dropped.zip", text])
    dialog.get_by_role("button", name="Import project").click()
    ana.page.wait_for_url(re.compile(r"/projects/[a-z2-7]{16}$"))
    assert [p["title"] for p in ana.ok("GET", "/api/projects")] == ["dropped"]

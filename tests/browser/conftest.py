"""One hub and one Chromium for a module's tests; every person has a browser context of their own."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, expect, sync_playwright

from tests.browser.people import ARTIFACTS, PATIENCE, Person
from tests.harness import HubProcess

DIST = Path(__file__).parents[2] / "static" / "dist"
# nothing that calls home
FLAGS = [
    "--no-sandbox",
    "--disable-quic",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
]
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    folder = tmp_path_factory.mktemp("hub")
    # a copy, so that a new build of the page in the middle of the tests does not pull it from under them
    shutil.copytree(DIST, folder / "page")
    found = HubProcess(folder / "data", f"--Codevo.static_dir={folder / 'page'}")
    found.start()
    yield found
    found.cleanup()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    assert program, "Chromium is missing: apt-get install chromium"
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def person(
    request: pytest.FixtureRequest, hub: HubProcess, browser: Browser
) -> Iterator[Callable[..., Person]]:
    """Makes people: ``person("ana")`` has a browser and no account yet, a name like ``ana7`` and no cookies.

    When the test fails, what they saw, their consoles and the hub's log go to ``.artifacts/``. An error in
    a page's console that nobody expected fails the test as well.
    """
    people: list[Person] = []

    def make(name: str, **options: object) -> Person:
        people.append(Person(browser, hub, f"{name}{next(_numbers)}", **options))
        return people[-1]

    before = request.session.testsfailed
    yield make
    complaints = {p.name: p.complaints for p in people if p.complaints}
    if complaints or request.session.testsfailed > before:
        _keep(request.node.name, people, hub)
    for one in people:
        one.context.close()
    assert not complaints, f"errors in the console: {complaints}"


def _keep(test: str, people: list[Person], hub: HubProcess) -> None:
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    test = re.sub(r"\W+", "-", test)
    for one in people:
        (ARTIFACTS / f"failed-{test}-{one.name}.txt").write_text("\n".join(one.log))
        for number, page in enumerate(one.context.pages):
            try:
                page.screenshot(path=ARTIFACTS / f"failed-{test}-{one.name}-{number}.png", timeout=5000)
            except Error as error:
                print(f"no picture of {one.name}: {error}")
    (ARTIFACTS / f"failed-{test}-hub.log").write_text(hub.log(5000))
    print(hub.log(40))

"""How much compressed JavaScript the IDE page loads before a terminal is opened, as Chromium counts it."""

from __future__ import annotations

from playwright.async_api import Response, async_playwright

from tests.harness import Client, HubProcess

CHROMIUM = "/usr/bin/chromium"


async def ide_weight(hub: HubProcess, person: Client) -> int:
    """Bytes of JavaScript on the wire for the first load of an IDE page, in an empty cache."""
    project = await person.new_project("python")
    await person.ready(project)
    sizes: dict[str, int] = {}
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-quic", "--disable-background-networking"],
        )
        context = await browser.new_context()
        cookies = [{"name": c.key, "value": c.value, "url": hub.url} for c in person.http.cookie_jar]
        await context.add_cookies(cookies)  # type: ignore[arg-type]
        tab = await context.new_page()

        async def count(response: Response) -> None:
            if "javascript" in response.headers.get("content-type", ""):
                found = await response.request.sizes()
                sizes[response.url] = found["responseBodySize"]

        tab.on("response", count)
        await tab.goto(f"{hub.url}/projects/{project}")
        await tab.locator(".cm-content").first.wait_for()
        await tab.wait_for_load_state("networkidle")
        await browser.close()
    return sum(sizes.values())

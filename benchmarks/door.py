"""Is a page one that people can read? Heights, contrast, sideways scroll, console and requests, in headless Chromium.

    python benchmarks/door.py site                  # what `make docs` built: a quarter of an hour of processor time
    python benchmarks/door.py runs/report.html

For every page: its height in screens of 1280x800, the least contrast of its text by day and by night (4.5 is the least
that counts as readable, 3 for large letters), backslashes that should be mathematics, its width on a phone of 390 pixels,
what the browser's console says and which hosts it asks. Faults are printed, and a last line with the counts.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

SCREENS = 10  # of a page, at most
WIDTH, HEIGHT, PHONE = 1280, 800, 390
CONTRAST = """
const lum = ([r, g, b]) => { const f = v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; };
  return .2126 * f(r) + .7152 * f(g) + .0722 * f(b); };
const parse = s => { const m = (s.match(/[\\d.]+/g) || []).map(Number); return m.length < 4 ? [...m, 1] : m; };
const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3]));
const ground = n => { const seen = []; for (let e = n; e; e = e.parentElement) {
  const c = parse(getComputedStyle(e).backgroundColor); seen.push(c); if (c[3] === 1) break; }
  let b = [255, 255, 255]; for (const c of seen.reverse()) b = over(c, b); return b; };
const bad = {}; let checked = 0, least = 21;
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const e = walker.currentNode.parentElement, words = walker.currentNode.textContent.trim(), style = getComputedStyle(e);
  if (!words || ["SCRIPT", "STYLE", "NOSCRIPT", "OPTION"].includes(e.tagName)) continue;
  if (style.visibility === "hidden" || style.display === "none") continue;
  const box = e.getBoundingClientRect(); if (box.width < 2 || box.height < 2) continue;
  let clear = 1; for (let a = e; a; a = a.parentElement) clear *= Number(getComputedStyle(a).opacity);
  if (clear === 0) continue;
  const svg = e.ownerSVGElement, colour = parse(svg ? style.fill : style.color);
  if (colour.length < 4 || colour.some(isNaN)) continue;
  const below = ground(svg ? svg.parentElement : e); colour[3] *= clear;
  const [x, y] = [lum(over(colour, below)), lum(below)].sort((p, q) => q - p), ratio = (x + .05) / (y + .05); checked++;
  const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
  least = Math.min(least, large ? ratio * 1.5 : ratio);
  const what = `${e.tagName} ${e.getAttribute("class") || ""} on ${below.map(Math.round)}`;
  if (ratio < (large ? 3 : 4.5)) bad[what] = `${ratio.toFixed(2)} ${words.slice(0, 30)}`;
}
return { checked, least, bad };
"""


@dataclasses.dataclass
class Seen:
    """What a page is like: faults in words, and the numbers behind them."""

    faults: list[str]
    screens: float
    contrast: float
    texts: int


def driver() -> Any:
    """A headless Chromium that keeps what its console says and what it asks for."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def look(browser: Any, url: str) -> Seen:
    """Everything about one page."""
    run, faults, contrast, texts = browser.execute_script, [], 21.0, 0
    size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    screens = 0.0
    for theme in ("light", "dark"):
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = [{"name": "prefers-color-scheme", "value": theme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        browser.get(url)
        run("try { localStorage.clear() } catch (e) {}")  # where the choice of a page before is kept
        browser.get(url)
        _wait(browser)
        screens = max(screens, run("return document.documentElement.scrollHeight") / HEIGHT)
        found = run(CONTRAST)
        contrast, texts = min(contrast, found["least"]), texts + found["checked"]
        faults += [f"{theme}: contrast {ratio} ({what})" for what, ratio in found["bad"].items()]
    if screens > SCREENS and not url.endswith("report.html"):
        faults.append(f"{screens:.1f} screens")
    words = run("return (document.querySelector('article') || document.createElement('p')).innerText")
    faults += [f"a backslash: {word}" for word in re.findall(r"\\[a-zA-Z]{2,}", words)[:3]]
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size | {"width": PHONE, "height": 844, "mobile": True})
    browser.get(url)
    _wait(browser)
    wide = run("return document.documentElement.scrollWidth")
    faults += [f"{wide} pixels wide on a phone of {PHONE}"] if wide > PHONE else []
    told = [entry["message"][:160] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    faults += [f"console: {words}" for words in told]
    for entry in browser.get_log("performance"):
        event = json.loads(entry["message"])["message"]
        asked = event["params"].get("request", {}).get("url", "") if event["method"] == "Network.requestWillBeSent" else ""
        if asked and not asked.startswith(("file:", "data:", "blob:", "chrome")):
            faults.append(f"asks for {asked}")
    return Seen(faults, screens, contrast, texts)


def _wait(browser: Any) -> None:
    """Until a report has drawn its figures; the site's pages are ready when they are there."""
    from selenium.webdriver.support.ui import WebDriverWait

    drawn = "return !document.getElementById('plotly') || document.documentElement.dataset.ready === 'yes'"
    WebDriverWait(browser, 60).until(lambda _: browser.execute_script(drawn))


def main(paths: list[str]) -> int:
    """Look at every page; 1 where one has a fault."""
    pages = [page for path in map(Path, paths) for page in (sorted(path.rglob("*.html")) if path.is_dir() else [path])]
    pages = [page for page in pages if page.name != "404.html"]
    seen: dict[str, Seen] = {}
    browser = driver()
    for i, page in enumerate(pages):
        if i % 40 == 39:  # a browser that has seen many pages is slow
            browser.quit()
            browser = driver()
        seen[str(page)] = look(browser, page.resolve().as_uri())
        if seen[str(page)].faults:
            print(page, *seen[str(page)].faults, sep="\n    ", flush=True)
    browser.quit()
    bad = sum(bool(s.faults) for s in seen.values())
    tallest = max(seen, key=lambda name: seen[name].screens)
    texts, least = sum(s.texts for s in seen.values()), min(s.contrast for s in seen.values())
    print(f"{len(seen)} pages, {bad} with faults; {texts:,} texts, least contrast {least:.2f}; "
          f"tallest {seen[tallest].screens:.1f} screens ({Path(tallest).name})")  # fmt: skip
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

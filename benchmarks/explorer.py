"""What a frame of the explorer costs while a box is dragged: `python -m benchmarks.explorer`.

CPU time of Chromium's main thread (script, style, layout, paint) for each frame drawn during a drag of 100 moves: other
work on the machine does not count. 60 frames a second leave 16.7 ms for a frame, 30 leave 33.
"""

import shutil
import tempfile
from pathlib import Path

from giou_repro import explore
from giou_repro.runs import store

MOVES = 100
COUNT = """window.drawn = 0;
const request = requestAnimationFrame;
window.requestAnimationFrame = (draw) => request(() => { window.drawn += 1; draw(); });"""


def measure(page):
    """Milliseconds of the main thread, and of script alone, for each frame of a drag of the prediction."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.evaluate(COUNT)
    area = page.locator("svg").first.bounding_box()
    x, y = area["x"] + area["width"] * 5.5 / 8, area["y"] + area["height"] * 2.5 / 5.2
    page.mouse.move(x, y)
    page.mouse.down()
    before = _clocks(page, session)
    for k in range(MOVES):
        page.mouse.move(x - 2 * k, y + k / 2)
    after = _clocks(page, session)
    page.mouse.up()
    frames = after["drawn"] - before["drawn"]
    return [1e3 * (after[key] - before[key]) / frames for key in ("TaskDuration", "ScriptDuration")]


def _clocks(page, session):
    metrics = {entry["name"]: entry["value"] for entry in session.send("Performance.getMetrics")["metrics"]}
    return metrics | {"drawn": page.evaluate("window.drawn")}


def main():
    from playwright.sync_api import sync_playwright

    machine = store.hardware()
    print(f"{machine['processor']}, {machine['cores']} cores")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for what, view in {"one loss": {}, "two losses": {"second": "ciou"}}.items():
            file = Path(folder, "explorer.html")
            file.write_text(explore(**view).page, encoding="utf-8")
            page = browser.new_page(viewport={"width": 1100, "height": 900})
            page.goto(file.as_uri())
            whole, script = measure(page)
            page.close()
            print(f"let go under {what}: {whole:.1f} ms of CPU a frame, {script:.1f} of it script")
        browser.close()


if __name__ == "__main__":
    main()

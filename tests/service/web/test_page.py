"""The page in a real browser, against a real service: every part of it is used as a person would."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import PIL.Image
import pytest
from playwright.sync_api import Page, expect


@pytest.fixture(scope="module")
def samples(photos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    for name in ("ants", "bees"):
        path = sorted((photos / "hymenoptera/val" / name).glob("*.jpg"))[1]
        shutil.copy(path, folder / f"{name}.jpg")
    return folder


@pytest.fixture(scope="module")
def shown(start, bundle_folder, samples):
    return start(bundle_folder, samples=str(samples))


@pytest.fixture
def page(browser, shown) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1360, "height": 900}, color_scheme="light")
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.complaints = []
    page.on("console", lambda line: page.complaints.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.outside = []
    page.on(
        "request",
        lambda asked: (
            None if asked.url.startswith((shown.url, "data:", "blob:")) else page.outside.append(asked.url)
        ),
    )
    page.goto(shown.url)
    expect(page.locator("#served")).to_contain_text("three, efficientnet_lite0, 3 classes")
    yield page
    assert page.outside == [], "the page works offline"
    assert page.complaints == []
    context.close()


def explained(page: Page, name: str = "bees.jpg") -> None:
    page.get_by_role("button", name=f"Try the sample {name}").click()
    expect(page.locator("#question")).to_have_text(re.compile(r"^Why .*\?$"))


def test_a_sample_is_explained_and_the_map_lies_on_it(page, samples, tmp_path):
    explained(page)
    expect(page.locator("#question")).to_have_text("Why bee?")
    expect(page.locator("#scores button").first).to_contain_text("bee")
    expect(page.locator("#warnings")).to_contain_text("cropped away")
    with page.expect_download() as kept:
        page.get_by_role("button", name="Picture", exact=True).click()
    kept.value.save_as(tmp_path / "shown.png")
    drawn = PIL.Image.open(tmp_path / "shown.png").convert("RGB")
    upright = PIL.Image.open(samples / "bees.jpg").convert("RGB")
    assert drawn.size == upright.size, "at full resolution"
    with page.expect_download() as kept:
        page.get_by_role("button", name="JSON").click()
    answer = json.loads(Path(kept.value.path()).read_text())
    (found,) = answer["evidence"]
    values, (x0, y0, *_) = found["grid"]["values"], found["seen_box"]
    top = max(max(row) for row in values)
    row, col = next((r, c) for r, line in enumerate(values) for c, value in enumerate(line) if value == top)
    width, height = found["cell_px"]
    hot = (int(x0 + (col + 0.5) * width), int(y0 + (row + 0.5) * height))
    # Where the evidence is strongest the drawing is pale yellow, whatever the photograph was there.
    red, green, blue = drawn.getpixel(hot)
    assert red > 180
    assert green > 150
    assert blue < 190
    assert answer["provenance"]["model"] == "three"


@pytest.mark.parametrize("against", ["", "ant"])
@pytest.mark.parametrize("fade", ["0", "0.3"])
def test_the_page_draws_what_the_service_draws(page, shown, samples, against, fade):
    explained(page)
    if fade != "0":
        page.get_by_label("Only above 30 %").check()
    if against:
        page.get_by_label("Why this, not").select_option(against)
        expect(page.locator("#question")).to_have_text("Why bee, not ant?")
    with page.expect_download() as kept:
        page.get_by_role("button", name="Picture", exact=True).click()
    ours = PIL.Image.open(kept.value.path()).convert("RGB")
    asked = {"encoding": "png", "fade": fade} | ({"against": against} if against else {})
    reply = shown.ask("/heatmap", (samples / "bees.jpg").read_bytes(), **asked)
    theirs = PIL.Image.open(io.BytesIO(reply.content)).convert("RGB")
    small = [picture.resize((24, 24), PIL.Image.Resampling.BOX) for picture in (ours, theirs)]
    differences = [
        abs(a - b)
        for one, other in zip(*(list(p.getdata()) for p in small), strict=True)
        for a, b in zip(one, other, strict=True)
    ]
    assert sum(differences) / len(differences) < 12


def test_another_class_and_one_against_another(page):
    explained(page)
    page.get_by_role("button", name="Why ant?").or_(
        page.locator("#scores button", has_text="ant")
    ).first.click()
    expect(page.locator("#question")).to_have_text(re.compile("Why ant"))
    page.locator("#scores button", has_text="bee").click()
    expect(page.locator("#question")).to_have_text("Why bee?")
    page.get_by_label("Why this, not").select_option("ant")
    expect(page.locator("#question")).to_have_text("Why bee, not ant?")
    expect(page.locator("#low")).to_have_text("ant")
    page.get_by_label("Why this, not").select_option("")
    expect(page.locator("#question")).to_have_text("Why bee?")
    first, second = (page.locator("#scores button span:first-child").nth(n).inner_text() for n in (0, 1))
    page.get_by_role("button", name=f"Why {first}, not {second}?").click()
    expect(page.locator("#question")).to_have_text(f"Why {first}, not {second}?")


@pytest.mark.parametrize("size", [(1366, 650), (1440, 780)], ids=str)
def test_on_a_laptop_the_tabs_are_seen_without_scrolling(page, size):
    page.set_viewport_size({"width": size[0], "height": size[1]})
    explained(page)
    tabs = page.get_by_role("tablist").bounding_box()
    assert tabs["y"] + tabs["height"] <= size[1]
    assert page.locator("#canvas").bounding_box()["height"] >= 240


def test_in_place_of_an_empty_map_the_suggested_one_is_shown_and_named(
    browser, start, gloomy_folder, samples
):
    own = start(gloomy_folder, samples=str(samples))
    page = browser.new_page()
    page.goto(own.url)
    explained(page)
    page.locator("#scores button", has_text="never").click()
    question = page.locator("#question")
    expect(question).to_have_text(
        re.compile("^Why never\\? Nothing here speaks for it. Shown instead: What ")
    )
    expect(page.locator("#canvas")).to_have_attribute("aria-label", re.compile("strongest in row"))
    expect(page.locator("#hatch-key")).to_be_hidden()
    page.locator("#scores button", has_text="bee").click()
    expect(question).to_have_text("Why bee?")
    page.close()


def test_answers_that_still_hold_stay_when_the_question_changes(page):
    explained(page)
    page.locator("#tab-cover").click()
    page.locator("#box").fill("40,60,160,180")
    page.get_by_role("button", name="Cover", exact=True).click()
    expect(page.locator("#covered table")).to_be_visible()
    page.locator("#scores button", has_text="ant").click()
    expect(page.locator("#question")).to_have_text("Why ant?")
    expect(page.locator("#covered table")).to_be_visible()
    page.locator("#tab-sweep").click()
    page.get_by_role("button", name="Sweep the blocks").click()
    expect(page.locator("#swept button")).to_have_count(5, timeout=20_000)
    page.locator("#block").select_option("stage5.2")
    expect(page.locator("#by")).to_contain_text("stage5.2")
    expect(page.locator("#swept button")).to_have_count(5)


def test_methods_blocks_and_the_sweep(page):
    explained(page)
    page.get_by_label("Method").select_option("hires_cam")
    expect(page.locator("#method-note")).to_contain_text("own share")
    page.locator("#block").select_option("stage5.2")
    page.locator("#tab-origin").click()
    expect(page.locator("#origin")).to_contain_text("hires_cam at stage5.2, 14 × 14")
    page.locator("#tab-sweep").click()
    page.get_by_role("button", name="Sweep the blocks").click()
    expect(page.locator("#swept button")).to_have_count(5, timeout=20_000)
    page.locator("#tab-cover").click()
    page.get_by_role("button", name="Cover", exact=True).click()
    expect(page.locator("#covered table")).to_be_visible()
    page.locator("#tab-sweep").click()
    page.locator("#swept button").nth(2).click()
    expect(page.locator("#block")).to_have_value("stage3.1")
    expect(page.locator("#covered table")).to_have_count(0, timeout=2000)
    expect(page.locator("#swept button")).to_have_count(5)
    page.locator("#method").select_option("occlusion")
    expect(page.locator("#block")).to_be_disabled()
    expect(page.locator("#by")).to_have_text("Occlusion, 28 × 28", timeout=30_000)
    page.get_by_role("button", name="Sweep the blocks").click()
    expect(page.locator("#swept")).to_contain_text("its map is the same for all of them")


def test_checks_and_covers_are_of_the_very_map_that_is_shown(page):
    explained(page)
    page.get_by_label("average with the mirror image").check()
    page.get_by_label("Why this, not").select_option("ant")
    expect(page.locator("#question")).to_have_text("Why bee, not ant?")
    page.evaluate("""() => {
        const ask = window.fetch;
        window.sent = {};
        window.fetch = (url, options) => {
            if (options?.body) window.sent[new URL(url).pathname] = Object.fromEntries(options.body);
            return ask(url, options);
        };
    }""")
    page.locator("#tab-cover").click()
    page.get_by_role("button", name="Cover", exact=True).click()
    expect(page.locator("#covered table")).to_be_visible()
    page.locator("#tab-trust").click()
    page.get_by_role("button", name="Check this explanation").click()
    expect(page.locator("#trusting")).to_be_visible()
    for route in ("/whatif", "/jobs/trust"):
        asked = page.evaluate(f"window.sent['{route}']")
        assert (asked["target"], asked["against"], asked["flip"]) == ("bee", "ant", "true")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#trusting")).to_be_hidden()


def test_a_box_drawn_by_hand_changes_the_scores(page):
    explained(page)
    page.get_by_role("button", name="Draw a box to cover").click()
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.25)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.8, steps=4)
    page.mouse.up()
    expect(page.locator("#covered table tbody tr")).to_have_count(3)
    expect(page.locator("#covered")).to_contain_text("of what the model sees was covered")
    assert re.fullmatch(r"\d+,\d+,\d+,\d+", page.locator("#box").input_value())


def test_cells_say_what_they_see_to_the_mouse_and_to_the_keyboard(page):
    explained(page)
    page.locator("#block").select_option("stage3.1")
    page.locator("#canvas[aria-busy]").wait_for(state="detached")
    page.locator("#canvas").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#readout")).to_contain_text(re.compile(r"Row \d+, column \d+: [+−]\d"))
    expect(page.locator("#readout")).to_contain_text("pixels of the network's 224 × 224 input")
    first = page.locator("#readout").inner_text()
    page.locator("#canvas").hover(position={"x": 200, "y": 150})
    expect(page.locator("#readout")).not_to_have_text(first)


@pytest.mark.soak
def test_trust_is_asked_by_a_job_with_progress_and_can_be_stopped(page, shown):
    explained(page)
    page.get_by_role("button", name="Check this explanation").click()
    expect(page.locator("#trusting")).to_be_visible(timeout=10_000)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#trusting")).to_be_hidden()
    page.wait_for_timeout(500)
    states = [job["state"] for job in shown.get("/jobs").json()["jobs"]]
    assert states[0] == "cancelled", "the latest is told first"
    page.get_by_role("button", name="Check this explanation").click()
    expect(page.locator(".verdicts")).to_contain_text("Do other methods agree?", timeout=120_000)
    expect(page.locator(".curves svg")).to_have_count(2)


def test_checks_are_about_the_map_that_is_shown(page):
    """Another method was asked for and refused; the map of the first one stays, and is what is checked."""
    explained(page)
    page.route("**/explain", lambda route: route.abort())
    page.get_by_label("Method").select_option("rise")
    expect(page.get_by_role("alert")).to_be_visible()
    with page.expect_request("**/jobs/trust") as posted:
        page.get_by_role("button", name="Check this explanation").click()
    assert b"rise" not in posted.value.post_data_buffer
    page.get_by_role("button", name="Stop").click()
    page.complaints.clear()


def test_what_fails_for_a_picture_that_is_gone_is_not_told(page):
    explained(page)
    held = []
    page.route("**/jobs/trust", lambda route: held.append(route))
    page.get_by_role("button", name="Check this explanation").click()
    expect(page.locator("#canvas")).to_have_attribute("aria-busy", "true")
    explained(page, "ants.jpg")
    expect(page.locator("#canvas")).to_have_attribute("aria-label", re.compile("^ants.jpg: evidence"))
    held[0].fulfill(status=503, json={"error": "The service is busy.", "kind": "busy"})
    page.wait_for_timeout(300)
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.locator("#question")).to_have_text(re.compile(r"^Why .*\?$"))
    page.complaints.clear()


def test_without_an_answer_nothing_more_can_be_asked(page, samples):
    explained(page)
    busy = {"error": "The service is busy.", "kind": "busy"}
    page.route("**/explain", lambda route: route.fulfill(status=503, json=busy))
    page.locator("#file").set_input_files(samples / "ants.jpg")
    expect(page.get_by_role("alert")).to_contain_text("The service is busy.")
    expect(page.locator("#more")).to_be_hidden()
    expect(page.locator("#cover")).to_be_disabled()
    many = {"error": "This key has used up its requests.", "kind": "too_many_requests"}
    page.route("**/samples/bees.jpg", lambda route: route.fulfill(status=429, json=many))
    page.get_by_role("button", name="Try the sample bees.jpg").click()
    expect(page.get_by_role("alert")).to_contain_text("used up its requests")
    page.complaints.clear()


def test_what_is_transparent_is_white_as_the_model_sees_it(page, tmp_path):
    PIL.Image.new("RGBA", (224, 224), (0, 0, 0, 0)).save(tmp_path / "empty.png")
    page.locator("#file").set_input_files(tmp_path / "empty.png")
    expect(page.locator("#question")).to_have_text(re.compile("^Why "))
    page.get_by_role("button", name="Map", exact=True).click()
    pixel = "[...document.querySelector('#canvas').getContext('2d').getImageData(112, 112, 1, 1).data]"
    assert page.evaluate(pixel) == [255, 255, 255, 255]


def test_another_model_is_noticed(browser, start, turned, bundle_folder, second, samples, tmp_path):
    link = tmp_path / "current"
    link.symlink_to(bundle_folder, target_is_directory=True)
    own = start(link, samples=str(samples), watch_seconds="0.3")
    page = browser.new_page()
    page.goto(own.url)
    explained(page)
    expect(page.locator("#served")).to_contain_text("three")
    turned(link, second)
    while own.get("/model").json()["model"] != "second":
        page.wait_for_timeout(100)
    page.locator("#method").select_option("layer_cam")
    expect(page.locator("#served")).to_contain_text("second")
    expect(page.locator("#method")).to_have_value("layer_cam")
    page.close()


def test_a_question_that_was_stopped_leaves_the_controls_as_the_map(page):
    explained(page)
    page.route("**/explain", lambda route: None)
    page.locator("#method").select_option("rise")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#method")).to_have_value("grad_cam")
    page.locator("#block").select_option("stage5.2")
    page.locator("#tab-inside").click()
    page.get_by_role("button", name="Look inside").click()
    expect(page.locator("#inside img")).to_be_visible()
    expect(page.locator("#block")).to_have_value("top")
    expect(page.locator("#by")).to_have_text("Grad-CAM at top, 7 × 7")
    page.complaints.clear()


def test_what_was_said_about_one_picture_goes_with_it(page, samples):
    explained(page)
    page.locator("#canvas").hover(position={"x": 200, "y": 150})
    expect(page.locator("#readout")).to_contain_text("Row ")
    page.route("**/explain", lambda route: route.abort())
    page.locator("#file").set_input_files(samples / "ants.jpg")
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.locator("#readout")).to_contain_text("Point at the picture")
    expect(page.locator("#canvas")).to_have_attribute("aria-label", "ants.jpg, without a map yet")
    page.complaints.clear()


def test_activations(page):
    explained(page)
    page.locator("#tab-inside").click()
    page.locator("#inside-block").select_option("stage2.1")
    page.get_by_role("button", name="Look inside").click()
    expect(page.locator("#inside img")).to_be_visible()
    expect(page.locator("#inside")).to_contain_text("24 channels of 56 × 56")


def test_the_copied_command_works(page, shown, samples):
    explained(page)
    page.get_by_label("Method").select_option("layer_cam")
    page.locator("#canvas[aria-busy]").wait_for(state="detached")
    page.get_by_role("button", name="Copy as curl").click()
    words = shlex.split(page.evaluate("navigator.clipboard.readText()"))
    assert words[0] == "curl"
    printed = subprocess.run([*words, "-s"], cwd=samples, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed)["evidence"][0]["method"] == "layer_cam"


def test_failures_are_told_with_care(page, tmp_path, samples):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes((samples / "bees.jpg").read_bytes()[:900])
    page.locator("#file").set_input_files(broken)
    expect(page.get_by_role("alert")).to_contain_text("cannot be decoded; it is probably cut off or damaged.")
    page.complaints.clear()
    explained(page)
    expect(page.get_by_role("alert")).to_be_hidden()
    page.route("**/explain", lambda route: route.abort())
    page.get_by_label("Method").select_option("layer_cam")
    expect(page.get_by_role("alert")).to_contain_text("The service cannot be reached.")
    page.unroute("**/explain")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_be_hidden()
    page.complaints.clear()


def test_what_the_browser_cannot_decode_is_shown_as_the_service_draws_it(page, tmp_path, samples):
    picture = PIL.Image.open(samples / "bees.jpg")
    picture.save(tmp_path / "bee.tif")
    page.locator("#file").set_input_files(tmp_path / "bee.tif")
    expect(page.locator("#question")).to_have_text("Why bee?")
    size = page.evaluate(
        "[document.querySelector('#canvas').width, document.querySelector('#canvas').height]"
    )
    assert tuple(size) == picture.size


def test_a_pasted_picture_and_a_turned_one(page, tmp_path, samples):
    upright = PIL.Image.open(samples / "bees.jpg").convert("RGB")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    upright.transpose(PIL.Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif, quality=97)
    page.locator("#file").set_input_files(tmp_path / "turned.jpg")
    expect(page.locator("#question")).to_have_text("Why bee?")
    size = page.evaluate(
        "[document.querySelector('#canvas').width, document.querySelector('#canvas').height]"
    )
    assert tuple(size) == upright.size
    page.evaluate("""async () => {
        const blob = await (await fetch('/samples/ants.jpg')).blob(), data = new DataTransfer();
        data.items.add(new File([blob], 'pasted.jpg', { type: 'image/jpeg' }));
        dispatchEvent(new ClipboardEvent('paste', { clipboardData: data }));
    }""")
    expect(page.locator("#canvas")).to_have_attribute("aria-label", re.compile("^pasted.jpg"))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_names_roles_and_contrast(browser, shown, theme):
    """Every control has a name, every text stands out from its ground (WCAG 2.2 AA)."""
    context = browser.new_context(color_scheme=theme, viewport={"width": 1360, "height": 900})
    page = context.new_page()
    page.goto(shown.url)
    explained(page)
    unnamed = page.evaluate("""() => [...document.querySelectorAll('button, input, select, canvas[tabindex], img')]
        .filter((e) => e.checkVisibility() && !e.alt && !(e.ariaLabel || e.labels?.length || e.innerText?.trim() || e.getAttribute('alt') === ''))
        .map((e) => e.outerHTML.slice(0, 80))""")
    assert unnamed == []
    low = page.evaluate("""() => {
        const light = (c) => { const [r, g, b] = c.map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const parts = (text) => text.match(/[\\d.]+/g).map(Number);
        const ground = (e) => { for (; e; e = e.parentElement) { const c = parts(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0.9) return c.slice(0, 3); } return [255, 255, 255]; };
        return [...document.querySelectorAll('p, span, button, label, li, h1, h2, option, td')].filter((e) => e.checkVisibility() && !e.disabled && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())).flatMap((e) => {
            const a = light(parts(getComputedStyle(e).color).slice(0, 3)), b = light(ground(e)), ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            return ratio < 4.5 ? [`${e.innerText.slice(0, 30)}: ${ratio.toFixed(2)}`] : [];
        });
    }""")
    assert low == []
    context.close()


def test_the_pictures_of_late_and_the_card_are_shown_where_the_model_has_them(
    browser, start, complete_folder, bee
):
    served = start(complete_folder)
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(served.url)
    section = page.locator("#drift")
    expect(section).to_contain_text("0 pictures in the last day: too few to tell.")
    for _ in range(31):
        assert served.ask("/predict", bee).status_code == 200
    page.reload()
    expect(section).to_contain_text(
        re.compile(r"31 pictures in the last day, unlike the \d+ validation pictures in: .*brightness")
    )
    expect(page.locator("#method-note")).to_contain_text("Best with this model for “Which region is of this")
    section.get_by_text("Figure by figure").click()
    expect(section.get_by_role("row", name=re.compile("^brightness"))).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.get_by_role("link", name="Model card").click()
    expect(page.get_by_role("heading", name="Card of three")).to_be_visible()
    page.close()
    share_out_by_concepts(browser, served, bee)


def share_out_by_concepts(browser, served, bee):
    """A prediction is shared out, stays so when the map changes, and goes with its class."""
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(served.url)
    page.locator("#file").set_input_files({"name": "bee.jpg", "mimeType": "image/jpeg", "buffer": bee})
    expect(page.locator("#question")).to_have_text("Why bee?")
    page.get_by_role("tab", name="What if covered?").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Concepts")).to_be_focused()
    page.get_by_role("button", name="Share it out").click()
    answer = served.ask("/concepts", bee).json()
    expect(page.locator("#concepts")).to_contain_text(f"bee: a logit of {answer['logit']:.2f} is")
    present = [share for share in answer["concepts"] if share["present"]]
    expect(page.locator(".concept")).to_have_count(min(len(present), 6))
    expect(page.locator(".concept h3").first).to_have_text(present[0]["name"])
    expect(page.locator(".concept .patches").first.get_by_role("img")).to_have_count(3)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.locator("#block").select_option("stage6.3")
    expect(page.locator("#by")).to_contain_text("stage6.3")
    expect(page.locator("#concepts")).to_contain_text("bee: a logit of")
    page.get_by_role("button", name="ant", exact=False).first.click()
    expect(page.locator("#question")).to_have_text("Why ant?")
    expect(page.locator("#concepts")).to_be_empty()
    page.close()


def test_weak_evidence_is_hidden_and_shown_again(page):
    explained(page)
    drawn = """() => {
        const { data } = document.querySelector("#canvas").getContext("2d").getImageData(0, 0, 224, 224);
        let sum = 0;
        for (let at = 0; at < data.length; at += 4) sum += data[at] * ((at % 997) + 1);
        return sum;
    }"""
    before = page.evaluate(drawn)
    page.get_by_label("Only above 30 %").check()
    assert page.evaluate(drawn) != before
    page.get_by_label("Only above 30 %").uncheck()
    assert page.evaluate(drawn) == before


def test_without_a_reference_a_card_and_concepts_the_page_says_nothing_of_them(page):
    expect(page.locator("#drift")).to_be_hidden()
    expect(page.get_by_role("link", name="Model card")).to_be_hidden()
    expect(page.locator("#tab-concepts")).to_be_hidden()

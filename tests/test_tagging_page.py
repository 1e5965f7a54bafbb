"""The page in a real Chromium: pictures are dropped, their tags are seen, edited and downloaded, on a phone, too."""

import csv
import io
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import LABELS, listening, png, served

from imet_ray.serving.app import make_app
from imet_ray.serving.limits import Limits

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]
PHONE, DESKTOP = (400, 800), (1300, 900)
TOKEN = "a-token-of-24-characters"
PICTURE, TAG, MAYBE = ".picture", ".tag .name", ".maybe .name"


@pytest.fixture(scope="module")
def chromium() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with listening(make_app(served(), limits=Limits(picture_bytes=5000))) as found:
        yield found


@pytest.fixture
def open_page(chromium, address):
    """Opens the page; afterwards nothing that it did may have been an error or against its policy."""
    contexts, errors = [], []

    def _open(size=DESKTOP, where=None, **options) -> playwright.Page:
        width, height = size
        contexts.append(chromium.new_context(viewport={"width": width, "height": height}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.on("dialog", lambda dialog: errors.append("a script of a label ran"))
        page.goto(where or address)
        return page

    yield _open
    for context in contexts:
        context.close()
    assert [error for error in errors if "status of 4" not in error] == []


@pytest.fixture
def files(tmp_path) -> list[Path]:
    """A red, a yellow and a blue picture, and a file that is none."""
    found = []
    for name, data in (
        ("red.png", png("red")),
        ("yellow <b>.png", png("yellow")),
        ("blue é.jpg", png("blue", kind="JPEG")),
        ("none.png", b"no picture"),
    ):
        found.append(tmp_path / name)
        found[-1].write_bytes(data)
    return found


def drop(page, *files: Path) -> None:
    """Drop files on the page as a hand would."""
    box = page.locator("#drop").bounding_box()
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send(
            "Input.dispatchDragEvent",
            {
                "type": kind,
                "x": box["x"] + 20,
                "y": box["y"] + 20,
                "data": {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1},
            },
        )


def ready(page, count: int) -> list[list[str]]:
    """The tags of each picture, when so many pictures are done or have failed."""
    page.locator(f"{PICTURE}[data-state=done], {PICTURE}[data-state=failed]").nth(count - 1).wait_for()
    return [card.locator(TAG).all_inner_texts() for card in page.locator(PICTURE).all()]


def download(page, button: str) -> tuple[str, bytes]:
    """The name and bytes of what a button downloads."""
    with page.expect_download() as found:
        page.click(button)
    return found.value.suggested_filename, Path(found.value.path()).read_bytes()


def rows(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode())))


def test_dropped_pictures_show_their_tags_as_bars(open_page, files):
    page = open_page()
    drop(page, *files[:3])
    assert ready(page, 3) == [["red"], ["red", "green"], [LABELS[2]]]
    first = page.locator(PICTURE).first
    assert first.locator(".tag .share").inner_text() == "95 %"
    bar = first.locator(".tag .bar")
    assert bar.evaluate("one => getComputedStyle(one).getPropertyValue('--share')") == "0.95"
    assert bar.bounding_box()["width"] > 50
    assert page.locator("h2").all_inner_texts() == [file.name for file in files[:3]]
    assert first.locator("img").evaluate("async one => (await one.decode(), one.naturalWidth)") == 40


def test_a_file_that_is_no_picture_is_named_and_the_others_are_tagged(open_page, files):
    page = open_page()
    drop(page, files[3], files[0])
    assert ready(page, 2) == [[], ["red"]]
    assert "none.png" in page.locator(f"{PICTURE} .miss").first.inner_text()


def test_a_file_that_is_too_large_is_not_sent(open_page, tmp_path):
    large = tmp_path / "large.png"
    large.write_bytes(png() + bytes(5000))
    page = open_page()
    sent = []
    page.on("request", lambda request: sent.append(request.url))
    page.set_input_files("#files", large)
    ready(page, 1)
    assert "large.png has more than" in page.locator(f"{PICTURE} .miss").inner_text()
    assert sent == [url for url in sent if "/tag" not in url]


def test_tags_are_removed_and_added(open_page, files):
    page = open_page()
    page.set_input_files("#files", files[0])
    ready(page, 1)
    page.get_by_label("remove red", exact=True).click()
    assert page.locator(TAG).count() == 0
    adder = page.get_by_label("add a label to red.png")
    assert adder.get_attribute("list") == "labels"
    assert page.locator("#labels option").evaluate_all("all => all.map(one => one.value)") == list(LABELS)
    adder.fill("no label of these")
    adder.press("Enter")
    assert "There is no label" in page.locator(f"{PICTURE} small.miss").inner_text()
    for name in ("tag & more", LABELS[2]):
        adder.fill(name)
        adder.press("Enter")
    assert page.locator(TAG).all_inner_texts() == [LABELS[2], "tag & more"]
    page.locator("summary").click()
    page.get_by_label("add red", exact=True).click()
    assert page.locator(TAG).all_inner_texts() == ["red", LABELS[2], "tag & more"]


def test_a_threshold_decides_until_the_ensemble_does_again(open_page, files):
    page = open_page()
    page.set_input_files("#files", files[0])
    ready(page, 1)
    page.locator("#threshold").fill("4")  # it draws with the browser's next frame
    playwright.expect(page.locator(TAG)).to_have_text(["red", "green", LABELS[2]])
    page.get_by_label("remove red", exact=True).click()
    _, data = download(page, "#csv")
    assert rows(data)[0]["decided_by"] == "probability at least 0.04, edited by hand"
    page.locator("#decided").check()
    playwright.expect(page.locator(TAG)).to_have_count(0)


def test_the_table_has_what_was_chosen(open_page, files):
    page = open_page()
    drop(page, *files)
    ready(page, 4)
    page.locator(PICTURE).first.get_by_label("remove red", exact=True).click()
    name, data = download(page, "#csv")
    assert name == "tags.csv"
    found = {row["path"]: row for row in rows(data)}
    assert list(found) == [file.name for file in files[:3]]
    assert found["red.png"]["labels"] == ""
    assert found["red.png"]["decided_by"] == "brightness, edited by hand"
    assert found["yellow <b>.png"]["decided_by"] == "brightness"
    assert "green" in found["yellow <b>.png"]["labels"]


def test_one_picture_is_one_sidecar_and_several_are_a_zip(open_page, files):
    page = open_page()
    page.set_input_files("#files", files[2])
    ready(page, 1)
    name, data = download(page, "#xmp")
    assert name.startswith("blue é")
    assert b"&lt;script&gt;" in data
    page.set_input_files("#files", files[:2])
    ready(page, 3)
    name, data = download(page, "#xmp")
    assert name == "tags.zip"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert len(archive.namelist()) == 3


def test_the_keyboard_stays_where_it_was(open_page, files):
    page = open_page()
    page.set_input_files("#files", files[:2])
    ready(page, 2)
    focused = "() => document.activeElement.getAttribute('aria-label')"
    page.locator(PICTURE).nth(1).get_by_label("remove red", exact=True).press("Enter")
    assert page.evaluate(focused) == "remove green"
    page.keyboard.press("Space")
    assert page.evaluate(focused) == "add a label to yellow <b>.png"
    page.keyboard.type("red")
    page.keyboard.press("Enter")
    assert page.locator(TAG).all_inner_texts() == ["red", "red"]
    assert page.evaluate(focused) == "add a label to yellow <b>.png"
    page.get_by_label("remove yellow <b>.png from the page").press("Enter")
    assert page.evaluate(focused) == "remove red.png from the page"


def test_names_run_in_the_direction_of_their_script(open_page, tmp_path):
    picture = tmp_path / "عکس\u200cها.png"
    picture.write_bytes(png())
    page = open_page(PHONE)
    page.set_input_files("#files", picture)
    ready(page, 1)
    direction = "one => getComputedStyle(one).direction"
    assert page.locator("h2").evaluate(direction) == "rtl"
    assert page.locator(TAG).evaluate(direction) == "ltr"
    assert rows(download(page, "#csv")[1])[0]["path"] == picture.name


def test_pictures_that_failed_are_tried_again_when_the_server_is_back(open_page, files):
    page = open_page()
    page.route("**/tag?*", lambda route: route.fulfill(status=422, json={"error": "not now"}))
    page.set_input_files("#files", files[:3])
    ready(page, 3)
    status = page.locator("#progress [role=status]")
    assert status.inner_text() == "0 of 3 tagged, 3 failed"
    assert page.locator("#csv").is_disabled()
    page.unroute("**/tag?*")
    page.click("#again")
    page.locator(f"{PICTURE}[data-state=done]").nth(2).wait_for()
    assert status.inner_text() == "3 of 3 tagged"
    assert not page.locator("#again").is_visible()


def test_a_hundred_pictures_at_once_are_tagged(open_page, tmp_path):
    many = [tmp_path / f"{i}.png" for i in range(100)]
    for picture in many:
        picture.write_bytes(png())
    page = open_page(PHONE)
    page.set_input_files("#files", many)
    assert ready(page, 100) == [["red"]] * 100
    assert page.locator("#progress [role=status]").inner_text() == "100 of 100 tagged"


def test_edits_that_were_not_downloaded_are_not_lost_unasked(open_page, files):
    page = open_page()
    page.set_input_files("#files", files[0])
    ready(page, 1)
    asks = """() => {
        const left = new Event("beforeunload", {cancelable: true});
        dispatchEvent(left);
        return left.defaultPrevented;
    }"""
    assert not page.evaluate(asks)
    page.get_by_label("remove red", exact=True).click()
    assert page.evaluate(asks)
    page.evaluate("() => { window.confirm = () => false; }")
    page.click("#clear")
    assert page.locator(PICTURE).count() == 1
    download(page, "#csv")
    assert not page.evaluate(asks)
    page.click("#clear")
    assert page.locator(PICTURE).count() == 0


def test_the_page_asks_for_the_token(open_page, files):
    with listening(make_app(served(), token=TOKEN)) as where:
        page = open_page(where=where)
        page.locator("#token").wait_for()
        assert not page.locator("#drop").is_visible()
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        page.get_by_text("That is not the token").wait_for()
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        page.locator("#drop").wait_for()
        page.set_input_files("#files", files[0])
        assert ready(page, 1) == [["red"]]
        assert download(page, "#csv")[0] == "tags.csv"
        page.reload()
        page.locator("#drop").wait_for()


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_on_a_phone_or_a_desktop(open_page, files, size, scheme):
    page = open_page(size, color_scheme=scheme)
    page.set_input_files("#files", files)
    ready(page, 4)
    wide = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wide) == 0
    paper = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")
    for button in page.get_by_role("button").all():
        box = button.bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= size[0]

"""The page as people use it, in Chromium, opened from the disk: ways in, answers, refusals, keyboard, themes."""

import base64
import dataclasses
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from tests.support.browser import Tab
from tests.support.onnx_models import picture_model, tiny_model
from tests.support.scenes import scene
from toolkit.errors import ToolkitError
from toolkit.inference import Classifier, read_image
from toolkit.inference.model_file import SHIPPED_MODEL
from toolkit.inference.output_format import format_predictions
from toolkit.serving.page import PageModel, render_page

pytestmark = pytest.mark.slow


def save_scene(path, *, seed=0):
    scene(96, 96, seed=seed).save(path)
    return path


@pytest.fixture
def picture(tmp_path):
    return save_scene(tmp_path / "picture.png")


def test_answers_without_a_network_and_without_a_request(open_page, shipped, picture):
    tab = open_page(shipped, offline=True)
    assert tab.text("#status").startswith("Ready in ")
    (result,) = tab.choose(picture)
    assert result.error is None
    elsewhere = [url for url in tab.requests if not url.startswith(("blob:", "data:"))]
    assert elsewhere == [tab.page.url]
    assert tab.page.url.startswith("file:")


def test_policy_stops_whatever_would_connect(open_page, shipped):
    """Held by the browser: a script in the page that tries to reach an address is refused."""
    tab = open_page(shipped)
    attempt = """(address) => new Promise((resolve) => {
        document.addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
        ACT
    })"""
    actions = {
        "fetch(address).catch(() => {})": "connect-src",
        "navigator.sendBeacon(address, 'x')": "connect-src",
        "new Image().src = address": "img-src",
        "document.head.append(Object.assign(document.createElement('script'), {src: address}))": "script-src-elem",
    }
    for action, directive in actions.items():
        assert tab.page.evaluate(attempt.replace("ACT", action), "http://127.0.0.1:9/x") == directive, action


def test_one_picture_is_shown_with_its_classes(open_page, shipped, picture):
    tab = open_page(shipped)
    tab.choose(picture)
    (expected,) = Classifier(SHIPPED_MODEL, provider="cpu").predict(picture, top=5)
    assert tab.text(".card .name") == "picture.png"
    assert tab.text(".card .verdict .label") == expected.label
    assert tab.texts(".bars .label") == [label for label, _ in expected.top]
    for shown, (_, probability) in zip(tab.texts(".bars .probability"), expected.top, strict=True):
        assert shown == ("< 0.1%" if probability < 0.001 else f"{100 * probability:.1f}%")
    widths = tab.page.eval_on_selector_all(".fill", "bars => bars.map((bar) => parseFloat(bar.style.width))")
    np.testing.assert_allclose(widths, [100 * probability for _, probability in expected.top], atol=1e-3)
    assert tab.texts(".card figcaption") == ["96 × 96", "What the network sees"]
    assert tab.text(".times").startswith("Network ")
    assert tab.text("#summary") == "1 picture classified"


def test_network_view_shows_the_prepared_pixels(open_page, shipped, picture):
    tab = open_page(shipped)
    tab.choose(picture)
    shown = tab.page.eval_on_selector(
        ".view-pixels canvas", "canvas => [...canvas.getContext('2d').getImageData(0, 0, 32, 32).data]"
    )
    np.testing.assert_array_equal(np.array(shown).reshape(32, 32, 4)[..., :3], read_image(picture))
    assert tab.page.eval_on_selector(".view-pixels canvas", "c => getComputedStyle(c).imageRendering") == "pixelated"


def test_twenty_pictures_at_once(open_page, shipped, tmp_path):
    paths = [save_scene(tmp_path / f"{number:02}.png", seed=number) for number in range(20)]
    tab = open_page(shipped)
    found = tab.choose(*paths)
    expected = Classifier(SHIPPED_MODEL, provider="cpu").predict(paths)
    assert [(each.name, each.top[0][0]) for each in found] == [
        (path.name, prediction.label) for path, prediction in zip(paths, expected, strict=True)
    ]
    assert tab.texts(".card .name") == [path.name for path in paths]
    assert tab.text("#summary").startswith("20 pictures classified · network ")
    tab.wait_until(lambda: tab.text("#live"))
    assert tab.text("#live") == f"20 pictures: {tab.text('#summary')}."


def test_files_that_are_no_pictures_are_refused_and_the_rest_classified(open_page, shipped, picture, tmp_path):
    contents = {
        "notes.txt": b"no picture",
        "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><script>alert(1)</script></svg>",
        "empty.png": b"",
        "cut.png": picture.read_bytes()[:40],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    tab = open_page(shipped)
    found = tab.choose(*(tmp_path / name for name in contents), picture)
    unreadable = "is not a picture that this browser can read (PNG, JPEG, WebP, GIF, AVIF, BMP)"
    assert [(each.name, each.error) for each in found] == [
        ("notes.txt", unreadable),
        ("drawing.svg", "is an SVG drawing, which has no pixels: save it as PNG"),
        ("empty.png", "is empty"),
        ("cut.png", unreadable),
        ("picture.png", None),
    ]
    assert tab.texts(".card.failed .verdict") == [each.error for each in found[:4]]
    assert tab.text("#summary") == "1 picture classified · 4 refused"


def test_too_large_files_are_refused(open_page, shipped, picture):
    tab = open_page(shipped)
    tab.page.evaluate("page.limits.pixels = 9215")
    assert tab.choose(picture)[0].error == "is too large: at most 9,215 pixels are decoded"
    tab.page.evaluate("page.limits.bytes = 100")
    assert tab.choose(picture)[0].error == "is too large: at most 100 bytes are read"


def test_clear_stops_what_has_not_been_classified(open_page, shipped, tmp_path):
    paths = [save_scene(tmp_path / f"{number:02}.png", seed=number) for number in range(20)]
    tab = open_page(shipped)
    tab.page.set_input_files("#files", paths)
    tab.page.get_by_role("button", name="Clear").click()
    (result,) = tab.choose(paths[0])  # after the rest of the first twenty
    assert (result.name, tab.count()) == ("00.png", 1)
    assert tab.text("#summary") == "1 picture classified"


TRANSFER = """({kind, content, name}) => {
    const transfer = new DataTransfer();
    if (content) {
        const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
        transfer.items.add(new File([bytes], name, {type: "image/png"}));
    } else {
        transfer.setData("text/plain", "only text");
    }
    const options = {bubbles: true, cancelable: true};
    const event = kind === "paste"
        ? new ClipboardEvent("paste", {...options, clipboardData: transfer})
        : new DragEvent(kind, {...options, dataTransfer: transfer});
    document.querySelector("footer").dispatchEvent(event);
    return event.defaultPrevented;
}"""


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_drop_and_paste(open_page, shipped, picture, kind):
    tab = open_page(shipped)
    tab.page.evaluate(TRANSFER, {"kind": kind})
    assert "holds no" in tab.text("#notice")
    content = base64.b64encode(picture.read_bytes()).decode()
    tab.page.evaluate(TRANSFER, {"kind": kind, "content": content, "name": "moved.png"})
    (result,) = tab.wait_for(1)
    assert (result.name, result.error) == ("moved.png", None)
    assert not tab.page.locator("#notice").is_visible()


def test_a_drop_anywhere_stays_on_the_page(open_page, shipped):
    tab = open_page(shipped)
    assert tab.page.evaluate(TRANSFER, {"kind": "dragover"}) is True
    tab.page.evaluate(TRANSFER, {"kind": "dragenter"})
    assert "over" in tab.page.get_attribute("#drop", "class")
    assert tab.page.evaluate(TRANSFER, {"kind": "drop"}) is True
    assert "over" not in tab.page.get_attribute("#drop", "class")


def test_camera(open_page, shipped):
    tab = open_page(shipped)
    tab.page.get_by_role("button", name="Use the camera").click()
    tab.page.get_by_role("dialog", name="Take a picture").wait_for()
    tab.wait_until(lambda: tab.page.eval_on_selector("#video", "video => video.videoWidth"))
    tab.page.get_by_role("button", name="Take picture").click()
    (result,) = tab.wait_for(1)
    assert (result.name, result.error) == ("Picture from the camera", None)
    assert tab.page.eval_on_selector("#video", "video => video.srcObject") is None
    assert not tab.page.get_by_role("dialog").is_visible()


def test_a_missing_camera_is_told(open_page, shipped):
    tab = open_page(shipped)
    refusal = "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', 'NotFoundError'))"
    tab.page.evaluate(f"() => {{ {refusal} }}")
    tab.page.get_by_role("button", name="Use the camera").click()
    assert tab.text("#notice") == "No camera was found."


def test_keyboard_alone(open_page, shipped, picture):
    tab = open_page(shipped)
    choosers = []
    # Long before Enter: the browser is told asynchronously. Playwright sets an attribute on the function that it calls,
    # which a built-in method does not take.
    tab.page.on("filechooser", lambda chooser: choosers.append(chooser))
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate("document.activeElement.id") == "files"
    outline = "label => getComputedStyle(label).outlineStyle + ' ' + getComputedStyle(label).outlineWidth"
    assert tab.page.eval_on_selector("label[for=files]", outline) == "solid 2px"
    tab.page.keyboard.press("Enter")
    tab.wait_until(lambda: choosers)
    assert choosers[0].is_multiple()
    choosers[0].set_files(str(picture))
    tab.wait_for(1)
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate("document.activeElement.id") == "camera"
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate("document.activeElement.id") == "clear"
    tab.page.keyboard.press("Enter")
    assert tab.page.evaluate("document.activeElement.id") == "files"
    assert not tab.page.locator("#results").is_visible()


def test_screen_reader(open_page, shipped, picture, tmp_path):
    """Roles and names, as Playwright finds them in the accessibility tree; one sentence for each batch."""
    (tmp_path / "notes.txt").write_text("no picture")
    tab = open_page(shipped)
    first, second = tab.choose(picture, tmp_path / "notes.txt")
    label, probability = first.top[0]
    tab.wait_until(lambda: tab.text("#live"))
    assert tab.text("#live") == f"picture.png: {label}, {100 * probability:.1f}%. notes.txt {second.error}."
    for level, name in ((1, "What is in the picture?"), (2, "Results"), (2, "The model"), (3, "picture.png")):
        assert tab.page.get_by_role("heading", name=name, level=level, exact=True).count() == 1
    assert tab.page.get_by_role("img", name="picture.png", exact=True).count() == 1
    assert tab.page.get_by_role("img", name="the 32 by 32 pixels that the network sees").count() == 1
    assert tab.page.get_by_label("Choose pictures").get_attribute("type") == "file"
    assert tab.page.get_by_role("region", name="Results").is_visible()
    assert tab.page.locator("html").get_attribute("lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_themes_and_widths(open_page, shipped, picture, tmp_path, scheme, width):
    """Nothing is wider than the window; all text has the contrast that WCAG AA asks for, 4.5 to 1."""
    long_name = save_scene(tmp_path / f"{'very-long-name' * 12}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    tab = open_page(shipped, color_scheme=scheme, viewport={"width": width, "height": 800})
    tab.choose(picture, long_name, tmp_path / "notes.txt")
    tab.page.eval_on_selector_all("details", "all => all.forEach((one) => (one.open = true))")
    assert tab.page.evaluate("document.documentElement.scrollWidth") == width
    grounds = colors(tab, "body, .card", "backgroundColor")
    texts = colors(tab, "h1, h2, h3, p, dt, dd, summary, .bars span, .chips li", "color")
    assert all((luminance(ground) > 0.5) == (scheme == "light") for ground in grounds)
    assert min(contrast(text, ground) for text in texts for ground in grounds) >= 4.5


def colors(tab, selector, property):
    return set(tab.page.eval_on_selector_all(selector, f"all => all.map((one) => getComputedStyle(one).{property})"))


def luminance(color):
    """WCAG's relative luminance of "rgb(r, g, b)"."""
    levels = np.array([float(level) for level in color[color.index("(") + 1 : -1].split(",")[:3]]) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def tiny_page_model(names=None, **options):
    """Class i's logit is a tenth of red, green or blue, i modulo 3."""
    names = names or [f"kind {number}" for number in range(10)]
    content = tiny_model(classes=len(names), **options).SerializeToString()
    return PageModel(content, "float-nchw" if options.get("float_nchw") else "uint8-nhwc", tuple(names), {})


@pytest.mark.parametrize("classes", [2, 3, 100, 1000])
def test_own_classes_in_any_number(open_page, picture, classes):
    names = [f"kind {number}" for number in range(classes)]
    tab = open_page(tiny_page_model(names))
    (result,) = tab.choose(picture)
    means = read_image(picture).reshape(-1, 3).mean(axis=0) / 10
    np.testing.assert_allclose(result.logits, means[np.arange(classes) % 3], atol=1e-4)
    assert len(result.top) == min(5, classes)
    assert result.top[0][0] == names[int(means[:classes].argmax())]
    assert tab.texts(".chips li") == names or classes > 12  # more of them are folded
    assert tab.page.locator(".chips li").count() == classes
    assert tab.page.eval_on_selector("#classes", "details => details.open") == (classes <= 12)


def test_names_of_classes_and_files_are_text(open_page, tmp_path):
    bad = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
    path = save_scene(tmp_path / "<b onclick=alert(3)>&amp;.png")
    tab = open_page(tiny_page_model([bad, "{{blocks}}", "plain"]))
    dialogs = []
    tab.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    tab.choose(path)
    assert tab.text(".card .name") == path.name
    assert tab.texts(".chips li") == [bad, "{{blocks}}", "plain"]
    assert bad in tab.texts(".bars .label")
    assert tab.page.locator("img, b").count() == 0
    assert dialogs == []


def test_models_with_float_input(open_page, picture):
    tab = open_page(tiny_page_model(float_nchw=True))
    (result,) = tab.choose(picture)
    means = read_image(picture).reshape(-1, 3).mean(axis=0) / 10
    np.testing.assert_allclose(result.logits, means[np.arange(10) % 3], atol=1e-4)


def test_models_that_take_pictures_of_any_size(open_page, picture):
    """The page resizes the picture itself, to show it; the graph leaves 32x32 pixels as they are."""
    model = picture_model()
    names = tuple(f"kind {number}" for number in range(10))
    tab = open_page(PageModel(model.SerializeToString(), "picture", names, {}))
    (result,) = tab.choose(picture)
    means = read_image(picture).reshape(-1, 3).mean(axis=0) / 10
    np.testing.assert_allclose(result.logits, means[np.arange(10) % 3], atol=1e-4)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda model: dataclasses.replace(model, content=model.content[:5000]), "The model could not be started: "),
        (
            lambda model: dataclasses.replace(model, class_names=(*model.class_names, "one more")),
            "The model gave no probability for each of its 11 classes.",
        ),
    ],
    ids=["damaged", "another number of classes"],
)
def test_model_that_does_not_start_is_told(open_page, shipped, picture, model, message):
    tab = open_page(model(shipped))
    assert tab.text("#status") == "Not available"
    assert tab.text("#failure").startswith(message)
    assert tab.choose(picture)[0].error == "cannot be classified: the model did not start"
    assert tab.page.locator("#failure").is_visible()


@pytest.fixture
def server(shipped):
    """Answers as `cifar serve` does: the page, and `POST /predict` in the JSON of `cifar predict`."""
    classifier = Classifier(SHIPPED_MODEL, provider="cpu")
    posted = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(200, "text/html; charset=utf-8", render_page(shipped, mode="server"))

        def do_POST(self):
            content = self.rfile.read(int(self.headers["content-length"]))
            posted.append((self.path, self.headers["content-type"], content))
            try:
                predictions = classifier.predict([read_image(content)], top=5)
            except ToolkitError as error:
                self.answer(422, "application/json", json.dumps([{"path": "", "error": str(error)}]))
            else:
                self.answer(200, "application/json", "".join(format_predictions(predictions, "json", top=5)))

        def answer(self, status, media_type, text):
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", posted
    server.shutdown()
    server.server_close()


def test_page_of_a_server_asks_it(browser, server, picture, tmp_path):
    address, posted = server
    tab = Tab(browser, address)
    (tmp_path / "notes.txt").write_text("no picture")
    good, bad = tab.choose(picture, tmp_path / "notes.txt")
    (expected,) = Classifier(SHIPPED_MODEL, provider="cpu").predict(picture, top=5)
    assert good.top == [(label, pytest.approx(probability, abs=1e-6)) for label, probability in expected.top]
    assert bad.error == (
        "not a picture in a known format (PNG, JPEG, WEBP, GIF, BMP, TIFF, AVIF, PPM); convert it to PNG or JPEG"
    )
    assert posted == [
        ("/predict?top=5", "application/octet-stream", path.read_bytes()) for path in (picture, tmp_path / "notes.txt")
    ]
    assert {url.partition("?")[0] for url in tab.requests if not url.startswith("data:")} == {
        address,
        f"{address}predict",
    }
    assert "sent to the server" in tab.text("#lede")
    assert tab.errors == []
    tab.context.close()


def test_page_of_a_server_that_is_gone(browser, server, picture):
    address, _ = server
    tab = Tab(browser, address)
    tab.context.set_offline(True)
    assert tab.choose(picture)[0].error == "got no answer: the server cannot be reached"
    tab.context.close()

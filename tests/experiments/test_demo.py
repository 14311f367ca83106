"""The demo: the files it writes, and the page in a real Chromium."""

import functools
import http.server
import json
import os
import pathlib
import shutil
import subprocess
import threading

import numpy as np
import pytest
from PIL import Image

import nin_jax
from nin_jax.visualize import demo, figures
from tests.helpers import ROOT, run_main, run_module

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
RUNTIME = 'NIN_ONNXRUNTIME_WEB'  # names dist/ of the npm package, where there is no npm
SEVEN = [(0.3, 0.22), (0.7, 0.22), (0.45, 0.82)]  # a stroke, in shares of the paper


@pytest.fixture(scope='session')
def runtime(tmp_path_factory) -> pathlib.Path:
    """ONNX Runtime Web of the version that the page is written for."""
    for folder in (os.environ.get(RUNTIME), ROOT / 'node_modules/onnxruntime-web/dist'):
        if folder and pathlib.Path(folder).is_dir():
            return pathlib.Path(folder)
    folder = tmp_path_factory.mktemp('npm')
    version = demo.RUNTIME.split('@')[1].split('/')[0]
    command = ['npm', 'install', '--no-audit', '--no-fund', f'onnxruntime-web@{version}']
    if not shutil.which('npm'):
        pytest.skip(f'no npm to install onnxruntime-web with, and {RUNTIME} is not set')
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if result.returncode:
        pytest.skip(f'npm cannot install onnxruntime-web: {result.stderr[-200:]}')
    return folder / 'node_modules/onnxruntime-web/dist'


@pytest.fixture(scope='module')
def page_url(runtime, tmp_path_factory):
    out = tmp_path_factory.mktemp('demo') / 'page'
    flags = ('--workdir=mnist', f'--out={out}', f'--runtime={runtime}')
    result = run_module('experiments.demo', *flags)
    assert result.returncode == 0 and str(out) in result.stdout, result.stderr
    handler = functools.partial(Quiet, directory=str(out))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope='module')
def browser():
    sync_api = pytest.importorskip('playwright.sync_api')
    if not CHROMIUM:
        pytest.skip('Chromium is not installed: apt-get install chromium')
    with sync_api.sync_playwright() as playwright:
        flags = ['--no-sandbox', '--disable-dev-shm-usage']
        flags += ['--use-fake-ui-for-media-stream', '--use-fake-device-for-media-stream']
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=flags)


@pytest.fixture
def page(browser, page_url):
    """The page, loaded. A test fails on any error that its scripts raise."""
    page, errors = browser.new_page(), []
    page.on('pageerror', lambda error: errors.append(str(error)))
    page.goto(page_url)
    page.wait_for_selector('body[data-ready]', timeout=60_000)
    yield page
    page.close()
    assert errors == []


def answer(page) -> str:
    """Waits for the likeliest class, and forgets it."""
    page.wait_for_selector('body[data-top]', timeout=60_000)
    return page.evaluate('(() => { const top = document.body.dataset.top;'
                         ' delete document.body.dataset.top; return top; })()')  # fmt: skip


@pytest.mark.browser
def test_top1_and_probability_are_those_of_predict(page, tmp_path):
    """Ten test images as PNG files, and photographs of odd sizes made from them."""
    network = nin_jax.load('mnist')
    with np.load(ROOT / 'nin_jax/data/assets/mnist_subset.npz') as file:
        images, labels = file['test_images'][:10], file['test_labels'][:10]
    right = 0
    for i, image in enumerate(images):
        picture = Image.fromarray(255 - image[..., 0]).convert('RGB')  # dark on light
        if i >= 5:  # larger, not square, colored
            picture = picture.resize((97 + i, 97 + i), Image.Resampling.BICUBIC)
            paper = Image.new('RGB', (150 + i, 97 + i), (250, 250, 235))
            paper.paste(picture, (26, 0))
            picture = paper
        picture.save(tmp_path / f'{i}.png')
        seen = figures.predict(network, np.asarray(picture)).ranking()[:5]
        page.set_input_files('#file', tmp_path / f'{i}.png')
        assert answer(page) == seen[0][0]
        shares = page.locator('#classes .fill').evaluate_all('f => f.map(e => e.style.width)')
        expected = [100 * probability for _, probability in seen]
        np.testing.assert_allclose([float(s.rstrip('%')) for s in shares], expected, atol=1)
        right += seen[0][0] == str(labels[i])
    assert right >= 8  # a network that knows nothing could agree with itself


@pytest.mark.browser
def test_a_drawn_seven_is_a_seven(page):
    page.click('#draw')
    box = page.locator('#paper').bounding_box()
    points = [(box['x'] + x * box['width'], box['y'] + y * box['height']) for x, y in SEVEN]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=8)
    page.mouse.up()
    assert answer(page) == '7'

    page.click('#clear')
    assert page.locator('#classes button').count() == 0 and page.is_hidden('#seen')
    page.click('#draw')
    assert page.is_visible('#hint')


@pytest.mark.browser
def test_a_one_drawn_with_the_keyboard(page):
    page.click('#draw')
    page.keyboard.press('Space')
    for _ in range(14):
        page.keyboard.press('ArrowDown')
    page.wait_for_function("document.querySelector('#classes .name')?.textContent === '1'")
    assert answer(page) == '1'


@pytest.mark.browser
def test_a_text_file_gets_a_sentence(page, tmp_path):
    page.evaluate("""() => {
        const data = new DataTransfer();
        data.items.add(new File(['not a picture'], 'notes.txt', {type: 'text/plain'}));
        document.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true}));
    }""")
    page.wait_for_selector('#error:not(:empty)')
    sentence = page.inner_text('[role=alert]')
    assert 'notes.txt' in sentence and 'PNG' in sentence and '\n' not in sentence
    Image.new('RGB', (30, 30), 'white').save(tmp_path / 'white.png')
    page.set_input_files('#file', tmp_path / 'white.png')
    answer(page)
    assert page.inner_text('#error') == ''


@pytest.mark.browser
def test_maps_follow_the_focus_and_the_layers_are_shown(page, tmp_path):
    with np.load(ROOT / 'nin_jax/data/assets/mnist_subset.npz') as file:
        Image.fromarray(file['test_images'][0, ..., 0]).save(tmp_path / 'digit.png')
    page.set_input_files('#file', tmp_path / 'digit.png')
    top = answer(page)
    page.wait_for_selector('#status:not(:empty)', state='attached')
    assert page.inner_text('#status').startswith(f'{top} ')  # what a screen reader says
    assert page.is_hidden('#heat')
    first, second = (page.locator('#classes button').nth(i) for i in (0, 1))
    read = "document.getElementById('heat').toDataURL()"
    first.focus()
    assert page.is_visible('#heat')
    heat = page.evaluate(read)
    page.keyboard.press('Tab')
    assert second.evaluate('e => e === document.activeElement') and page.evaluate(read) != heat
    page.keyboard.press('Enter')
    page.locator('#file').focus()
    assert page.is_visible('#heat') and second.get_attribute('aria-pressed') == 'true'

    page.wait_for_selector('#layers:visible')
    assert '96 maps of 28×28' in page.inner_text('#layer-text')
    page.locator('#layer-names label').last.click()
    page.wait_for_function("document.getElementById('layer-text').textContent.includes('7×7')")


@pytest.mark.browser
def test_a_pinned_map_goes_with_its_picture_or_a_second_press(page, tmp_path):
    with np.load(ROOT / 'nin_jax/data/assets/mnist_subset.npz') as file:
        for i in range(2):
            Image.fromarray(file['test_images'][i, ..., 0]).save(tmp_path / f'{i}.png')
    page.set_input_files('#file', tmp_path / '0.png')
    answer(page)
    button = page.locator('#classes button').nth(1)
    button.click()
    page.mouse.move(0, 0)
    assert page.is_visible('#heat')
    page.set_input_files('#file', tmp_path / '1.png')
    answer(page)
    assert page.is_hidden('#heat') and page.locator('[aria-pressed=true]').count() == 0
    button.click()
    assert page.is_visible('#heat')
    button.click()
    assert page.is_hidden('#heat')


@pytest.mark.browser
def test_a_page_opened_from_the_disk_says_what_to_do(browser):
    page = browser.new_page()
    page.goto((demo.PAGE / 'index.html').as_uri())
    assert 'python -m http.server' in page.inner_text('#error')
    assert page.inner_text('#about') == ''
    page.close()


@pytest.mark.browser
def test_the_whole_picture_gets_a_larger_map(page, tmp_path):
    Image.effect_noise((300, 200), 50).save(tmp_path / 'noise.png')
    page.set_input_files('#file', tmp_path / 'noise.png')
    answer(page)
    assert '200×200' in page.inner_text('#treatment')
    page.check('[value=whole]')
    answer(page)
    assert 'scaled to 128×85' in page.inner_text('#treatment')
    page.locator('#classes button').first.focus()
    width, height = page.locator('#heat').evaluate('e => [e.width, e.height]')
    assert abs(width / height - 128 / 85) < 0.02


@pytest.mark.browser
def test_the_camera(page):
    """Chromium's own test picture, moving."""
    page.click('#camera')
    answer(page)
    assert page.get_attribute('#camera', 'aria-pressed') == 'true'
    page.click('#camera')
    page.wait_for_selector('#status:not(:empty)', state='attached')
    assert page.get_attribute('#camera', 'aria-pressed') == 'false'


@pytest.mark.browser
def test_two_clicks_open_one_camera(page):
    page.evaluate("""() => {
        const media = navigator.mediaDevices, open = media.getUserMedia.bind(media);
        window.opened = [];
        media.getUserMedia = async (wanted) => {
            const stream = await open(wanted);
            window.opened.push(stream);
            return stream;
        };
        document.getElementById('camera').click();
        document.getElementById('camera').click();
    }""")
    answer(page)
    live = 'opened.filter((s) => s.active).length'
    assert page.evaluate(f'[opened.length, {live}]') == [2, 1]
    page.click('#camera')
    assert page.evaluate(live) == 0


@pytest.mark.browser
@pytest.mark.parametrize('width', [320, 390, 1100])
def test_nothing_is_wider_than_the_screen(page, width, tmp_path):
    page.set_viewport_size({'width': width, 'height': 800})
    Image.new('RGB', (400, 100), 'white').save(tmp_path / 'wide.png')
    page.set_input_files('#file', tmp_path / 'wide.png')
    answer(page)
    page.wait_for_selector('#layers:visible')
    assert page.evaluate('document.documentElement.scrollWidth') <= width


@pytest.mark.browser
def test_a_missing_network_gets_a_sentence(browser, page_url):
    page = browser.new_page()
    page.route('**/model.onnx', lambda route: route.fulfill(status=404))
    page.goto(page_url)
    page.wait_for_selector('#error:not(:empty)')
    assert 'model.onnx is missing' in page.inner_text('#error')
    page.close()


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        (['--workdir=x'], '--out is missing'),
        (['--out=y', '--workdir=/nowhere'], "'/nowhere"),
        (['--out=y', 'picture.png'], "unexpected argument 'picture.png'"),
    ],
)
def test_mistakes_of_the_command(flags, words):
    result = run_module('experiments.demo', *flags)
    assert result.returncode == 2 and words in result.stderr
    assert result.stderr.startswith('error: ') and result.stderr.count('\n') == 1


def test_the_files_without_a_copy_of_the_runtime(tmp_path):
    assert run_main(f'--workdir={tmp_path}/run').returncode == 0
    flags = (f'--workdir={tmp_path}/run', f'--out={tmp_path}/page')
    result = run_module('experiments.demo', *flags)
    assert result.returncode == 0, result.stderr
    written = {p.name for p in (tmp_path / 'page').iterdir()}
    assert written == {p.name for p in demo.PAGE.iterdir()} | {'model.onnx', 'network.json'}
    settings = json.loads((tmp_path / 'page' / 'network.json').read_text())
    assert settings['runtime'] == demo.RUNTIME and settings['digits'] is True
    assert settings['layers'][:2] == ['conv1', 'cccp1'] and settings['image_shape'] == [28, 28, 1]
    result = run_module('experiments.demo', *flags, f'--runtime={tmp_path}')
    assert result.returncode == 2 and 'ort.wasm.min.mjs' in result.stderr

// The page: what the visitor does, and what is shown for it.

import { drawable } from './draw.js';
import {
  centerDigit, decode, fromDrawable, middleSquare, paint, resize, shrink, toChannels,
} from './image.js';
import { classMap, evidence, layOver, mosaic } from './maps.js';
import { load, rank } from './network.js';

const $ = (id) => document.getElementById(id);
const percent = (p) => (p < 0.0005 ? '< 0.1 %' : `${(100 * p).toFixed(p < 0.0995 ? 1 : 0)} %`);
const state = {
  image: null, drawing: false, answer: null, shown: null, pinned: null, layer: null, maps: null,
};
let network; // from load()
let stream = null; // of the camera
let latest = 0; // number of the newest question: older answers are not shown
let layersAsked = 0; // number of the newest request for a layer's maps
let cameras = 0; // number of the newest source: older streams and files are dropped

// ---- questions ---------------------------------------------------------------------------

/** The image for the network, in the mode chosen, and in words what was done to the picture. */
function prepare(image) {
  const [height, width, channels] = network.settings.image_shape;
  const words = [`${image.width}×${image.height} pixels`];
  const found = toChannels(image, channels);
  if (state.drawing) {
    const digit = centerDigit(found.image, height);
    return digit && { view: digit, input: digit, words: ['scaled and centered as MNIST’s digits are'] };
  }
  if (isWhole()) {
    const input = shrink(found.image, Number($('scale').value));
    if (found.done) words.push(found.done);
    words.push(`scaled to ${input.width}×${input.height}`);
    return { view: found.image, input, words };
  }
  const view = middleSquare(found.image);
  if (image.width !== image.height) words.push(`its middle ${view.width}×${view.height}`);
  if (found.done) words.push(found.done);
  if (view.width !== width || view.height !== height) words.push(`scaled to ${width}×${height}`);
  return { view, input: resize(view, width, height), words };
}

const isWhole = () => !state.drawing && document.querySelector('[name=mode]:checked').value === 'whole';

/** Asks the network about the current image and shows what it answers. */
async function ask({ quiet = false } = {}) {
  const prepared = state.image && prepare(state.image);
  if (!prepared) return;
  const question = ++latest;
  const { input, view, words } = prepared;
  const isStale = () => question !== latest;
  const outputs = await compute(input, ['logits', 'maps'], isStale);
  if (isStale() || !outputs) return;
  const { probabilities, order } = rank(outputs.logits.data);
  state.answer = { input, view, maps: outputs.maps, probabilities, order, whole: isWhole() };
  $('treatment').textContent = words.join(', ');
  showPicture();
  showClasses();
  document.body.dataset.top = network.settings.class_names[order[0]];
  if (quiet) return;
  $('status').textContent = order.slice(0, 5)
    .map((k) => `${network.settings.class_names[k]} ${percent(probabilities[k])}`).join(', ');
  await showLayers(question);
}

/** Runs the network; null if the request is stale, or if the network fails, which it says. */
async function compute(input, names, isStale) {
  try {
    return await network.run(input, names, isStale);
  } catch (error) {
    stopCamera();
    fail(`The network fails on this picture: ${error.message}.`);
    return null;
  }
}

async function setImage(image, { drawing = false, quiet = false } = {}) {
  state.image = image;
  state.drawing = drawing;
  if (!quiet) state.pinned = state.shown = null; // the camera keeps the class
  fail('');
  await ask({ quiet });
}

function fail(sentence) {
  $('error').textContent = sentence;
}

// ---- answers -----------------------------------------------------------------------------

function showPicture() {
  const { view } = state.answer;
  paint($('picture'), Math.max(view.width, view.height) > 1024 ? shrink(view, 1024) : view);
  $('seen').classList.toggle('small-picture', Math.max(view.width, view.height) <= 64);
  $('seen').hidden = false;
  $('hint').hidden = true;
  $('stage').classList.add('full');
  $('modes').hidden = state.drawing || network.settings.head !== 'gap';
  $('scale-label').hidden = !isWhole();
}

function showClasses() {
  const { probabilities, order } = state.answer;
  const names = network.settings.class_names;
  const list = $('classes');
  const five = order.slice(0, 5);
  while (list.children.length < five.length) list.append(classRow());
  five.forEach((k, i) => {
    const button = list.children[i].firstElementChild;
    button.dataset.class = k;
    button.querySelector('.fill').style.width = `${100 * probabilities[k]}%`;
    button.querySelector('.name').textContent = names[k];
    button.querySelector('.share').textContent = percent(probabilities[k]);
  });
  $('classes-hint').textContent = network.settings.head === 'gap'
    ? 'Point at a class, or move the focus to it, to see its map over the picture. Press it to keep the map.'
    : 'The maps of a network with a fully connected head belong to no class.';
  showMap(state.pinned ?? state.shown);
}

function classRow() {
  const row = document.createElement('li');
  row.innerHTML = '<button type="button" aria-pressed="false"><span class="fill"></span>'
    + '<span class="name"></span><span class="share"></span></button>';
  const button = row.firstElementChild;
  const mine = () => Number(button.dataset.class);
  for (const event of ['pointerenter', 'focus']) button.addEventListener(event, () => showMap(mine()));
  for (const event of ['pointerleave', 'blur']) {
    button.addEventListener(event, () => showMap(state.pinned));
  }
  button.addEventListener('click', () => {
    state.pinned = state.pinned === mine() ? null : mine();
    showMap(state.pinned); // on touch, no pointerleave follows
  });
  return row;
}

/** Lays a class's map over the picture; none for null. */
function showMap(k) {
  const visible = k !== null && state.answer !== null && network.settings.head === 'gap';
  state.shown = k;
  for (const button of $('classes').querySelectorAll('button')) {
    button.setAttribute('aria-pressed', String(Number(button.dataset.class) === state.pinned));
    button.classList.toggle('shown', visible && Number(button.dataset.class) === k);
  }
  $('heat').hidden = !visible;
  const name = network.settings.class_names[k];
  $('picture').setAttribute('aria-label', visible ? `The picture, with the map of ${name}` : 'The picture');
  if (!visible) return;
  const { maps, whole, input } = state.answer;
  layOver($('heat'), whole ? evidence(maps, k) : classMap(maps, k), input, network.settings.stride);
}

/** Computes and draws the chosen layer's maps of the middle square. */
async function showLayers(question) {
  if (!network.settings.layers.length) return;
  const request = ++layersAsked;
  const isStale = () => question !== latest || request !== layersAsked;
  const name = state.layer;
  const [height, width] = network.settings.image_shape;
  const { input, view } = state.answer;
  const square = input.width === width && input.height === height
    ? input : resize(middleSquare(view), width, height);
  const found = await compute(square, [name], isStale);
  if (isStale() || !found) return;
  $('layers').hidden = false;
  state.maps = found[name];
  const [, channels, rows, columns] = state.maps.dims;
  drawMaps();
  const words = `${name}: ${channels} maps of ${columns}×${rows}`;
  $('layer-text').textContent = words;
  $('mosaic').setAttribute('aria-label', words);
}

function drawMaps() {
  if (!$('layers').hidden) mosaic($('mosaic'), state.maps, $('layers').clientWidth - 34);
}

// ---- pictures ----------------------------------------------------------------------------

async function takeFile(file) {
  stopCamera();
  const mine = cameras; // a newer choice raises it
  let image;
  try {
    image = await decode(file);
  } catch {
    if (mine === cameras) fail(`“${file.name || 'That'}” is not a picture that this browser can read: choose a PNG, JPEG, `
      + 'WebP or GIF file.');
    return;
  }
  if (mine !== cameras) return;
  showDrawing(false);
  await setImage(image);
}

function stopCamera() {
  cameras++;
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $('video').hidden = true;
  $('camera').setAttribute('aria-pressed', 'false');
  $('camera').textContent = 'Camera';
}

async function toggleCamera() {
  if (stream) {
    stopCamera();
    await ask(); // about the last frame, aloud
    return;
  }
  const mine = ++cameras;
  const video = $('video');
  try {
    const found = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment' } });
    if (mine !== cameras) { // another picture was chosen meanwhile
      found.getTracks().forEach((track) => track.stop());
      return;
    }
    stream = found;
    video.srcObject = stream;
    await video.play();
  } catch {
    if (mine !== cameras) return;
    stopCamera();
    fail('The camera is not available: allow this page to use it, or choose a picture.');
    return;
  }
  if (mine !== cameras) return;
  showDrawing(false);
  $('camera').setAttribute('aria-pressed', 'true');
  $('camera').textContent = 'Keep this picture';
  $('layers').hidden = true; // until the picture stands still
  while (mine === cameras) { // as fast as the network answers
    await setImage(fromDrawable(video, video.videoWidth, video.videoHeight), { quiet: true });
    await new Promise(requestAnimationFrame);
  }
}

/** Forgets the picture and its answers. */
function reset() {
  latest++;
  Object.assign(state, { image: null, answer: null, shown: null, pinned: null });
  $('classes').replaceChildren();
  $('treatment').textContent = $('status').textContent = '';
  $('classes-hint').textContent = 'The answers appear here.';
  $('seen').hidden = $('modes').hidden = $('layers').hidden = true;
}

let paper = null;

function showDrawing(on) {
  $('paper').hidden = $('paper-tools').hidden = !on;
  $('stage').classList.toggle('drawing', on);
  $('draw').setAttribute('aria-pressed', String(on));
  if (on) {
    stopCamera();
    $('hint').hidden = true;
    reset();
    fail('');
    paper?.clear();
    paper ??= drawable($('paper'), $('pen'), () => setImage(
      fromDrawable($('paper'), $('paper').width, $('paper').height), { drawing: true }));
    $('paper').focus();
  } else {
    $('pen').hidden = true;
    $('hint').hidden = state.answer !== null;
  }
}

function listen() {
  $('file').addEventListener('change', () => {
    if ($('file').files.length) takeFile($('file').files[0]);
    $('file').value = '';
  });
  $('camera').addEventListener('click', toggleCamera);
  $('draw').addEventListener('click', () => showDrawing($('paper').hidden));
  $('clear').addEventListener('click', () => {
    paper.clear();
    reset();
    $('paper').focus();
  });
  for (const radio of document.querySelectorAll('[name=mode]')) radio.addEventListener('change', ask);
  $('scale').addEventListener('input', () => { $('scale-text').textContent = $('scale').value; });
  $('scale').addEventListener('change', ask);
  const isOver = (on) => $('stage').classList.toggle('over', on);
  document.addEventListener('dragover', () => isOver(true));
  document.addEventListener('dragleave', () => isOver(false));
  document.addEventListener('drop', (event) => {
    isOver(false);
    if (event.dataTransfer.files.length) takeFile(event.dataTransfer.files[0]);
    else fail('That was not a file: drop a picture from your disk.');
  });
  document.addEventListener('paste', (event) => {
    if (event.clipboardData.files.length) takeFile(event.clipboardData.files[0]);
  });
  window.addEventListener('resize', drawMaps);
  for (const id of ['file', 'camera', 'draw']) $(id).disabled = false;
}

function layerTabs(layers) {
  state.layer = layers[0];
  layers.forEach((name, i) => {
    const label = document.createElement('label');
    label.innerHTML = '<input type="radio" name="layer" class="hidden"><span></span>';
    label.lastElementChild.textContent = name;
    label.firstElementChild.checked = i === 0;
    label.firstElementChild.addEventListener('change', () => {
      state.layer = name;
      showLayers(latest);
    });
    $('layer-names').append(label);
  });
}

// Before the network is there, too: the browser would open a dropped picture instead of the page.
for (const event of ['dragover', 'drop']) document.addEventListener(event, (e) => e.preventDefault());

try {
  network = await load();
  document.title = $('title').textContent = network.settings.title;
  $('about').textContent = network.settings.about;
  $('draw').hidden = !network.settings.digits;
  $('camera').hidden = !navigator.mediaDevices?.getUserMedia;
  layerTabs(network.settings.layers);
  listen();
  document.body.dataset.ready = 'yes';
} catch (error) {
  $('about').textContent = '';
  fail(error.message);
}

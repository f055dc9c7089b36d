// The page: takes pictures in, shows each one's classes, and reports the state of the model.
"use strict";

const page = JSON.parse(element("page-data").textContent);
const results = []; // in the order in which the pictures were classified: { name, pixels, top, logits, milliseconds }
const opened = startModel();
let queue = Promise.resolve(); // one batch after the other

showModel();
connectInputs();

function element(id) {
  return document.getElementById(id);
}

async function startModel() {
  try {
    const model = await openModel(page);
    const seconds = performance.now() / 1000; // since the page began to load
    setStatus("ready", page.mode === "server" ? "Ready" : `Ready in ${seconds.toFixed(1)} s`);
    return model;
  } catch (error) {
    setStatus("failed", "Not available");
    const message = error instanceof ModelError ? error.message : `The model could not be started: ${error.message}`;
    showNotice(message, "failure");
    return null;
  }
}

// ---- Pictures in ----

function connectInputs() {
  for (const id of ["files", "capture"]) {
    element(id).addEventListener("change", (event) => {
      addFiles([...event.target.files]);
      event.target.value = ""; // the same file may be chosen again
    });
  }
  document.addEventListener("paste", (event) => takeFrom(event.clipboardData, "The clipboard holds no picture."));
  connectDrop();
  element("camera").addEventListener("click", openCamera);
  element("shoot").addEventListener("click", takePicture);
  element("close-camera").addEventListener("click", () => element("camera-dialog").close());
  element("camera-dialog").addEventListener("close", stopCamera);
  element("clear").addEventListener("click", clearResults);
}

/** The whole page takes drops: one that misses the frame must not make the browser leave the page. */
function connectDrop() {
  let depth = 0; // dragenter and dragleave come for every element that is crossed
  const mark = (change) => {
    depth = Math.max(0, depth + change);
    element("drop").classList.toggle("over", depth > 0);
  };
  document.addEventListener("dragenter", () => mark(1));
  document.addEventListener("dragleave", () => mark(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    mark(-depth);
    takeFrom(event.dataTransfer, "What was dropped holds no file: save the picture first, then drop the file.");
  });
}

function takeFrom(transfer, ifEmpty) {
  const files = [...transfer.files];
  files.length ? addFiles(files) : showNotice(ifEmpty);
}

async function openCamera() {
  if (!navigator.mediaDevices?.getUserMedia) {
    element("capture").click(); // the camera application of a phone
    return;
  }
  try {
    const wanted = { video: { facingMode: "environment", width: { ideal: 1280 } } };
    element("video").srcObject = await navigator.mediaDevices.getUserMedia(wanted);
  } catch (error) {
    const denied = error.name === "NotAllowedError";
    showNotice(denied ? "The browser was not allowed to use the camera." : "No camera was found.");
    return;
  }
  showNotice("");
  element("camera-dialog").showModal();
}

async function takePicture() {
  const video = element("video");
  if (!video.videoWidth) return; // no frame yet
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  element("camera-dialog").close();
  const blob = await canvas.convertToBlob({ type: "image/png" });
  addFiles([new File([blob], "Picture from the camera", { type: blob.type })]);
}

function stopCamera() {
  const video = element("video");
  video.srcObject?.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
}

// ---- Classes out ----

/** Show a card for each file at once, above earlier ones, then fill them one after the other. */
function addFiles(files) {
  if (!files.length) return;
  showNotice("");
  element("results").hidden = false;
  const cards = files.map((file) => newCard(file.name || "Pasted picture"));
  element("cards").prepend(...cards);
  queue = queue.then(() => classifyAll(files, cards));
}

async function classifyAll(files, cards) {
  const model = await opened;
  const batch = [];
  for (const [index, file] of files.entries()) {
    const card = cards[index];
    const result = card.isConnected && (await classifyOne(model, file, card));
    if (!card.isConnected) continue; // cleared, before or meanwhile
    batch.push(result);
    results.push(result);
    showSummary();
    await nextFrame();
  }
  if (batch.length) announce(batch);
}

async function classifyOne(model, file, card) {
  const name = card.querySelector(".name").textContent;
  try {
    if (model === null) throw new ModelError("cannot be classified: the model did not start");
    const start = performance.now();
    const picture = await previewOf(file);
    const prepared = performance.now() - start;
    if (picture) showPicture(card, name, picture);
    const { top, logits, milliseconds } = await model.classify(file, picture);
    showClasses(card, top);
    card.querySelector(".times").textContent =
      page.mode === "server"
        ? `Answer of the server ${formatTime(milliseconds)}`
        : `Network ${formatTime(milliseconds)} · decoding and resizing ${formatTime(prepared)}`;
    card.classList.add("done");
    return { name, pixels: picture?.pixels ?? null, top, logits, milliseconds };
  } catch (error) {
    const expected = error instanceof PictureError || error instanceof ModelError;
    showError(card, expected ? error.message : `could not be classified (${error.message})`);
    return { name, error: error.message };
  }
}

/** The prepared picture; null where only the server may be able to decode the file. */
async function previewOf(file) {
  try {
    return await readPicture(file, page.limits);
  } catch (error) {
    if (page.mode === "server" && error instanceof PictureError) return null;
    throw error;
  }
}

function newCard(name) {
  const card = element("card").content.cloneNode(true).firstElementChild;
  card.querySelector(".name").textContent = name;
  card.querySelector(".name").title = name;
  return card;
}

function showPicture(card, name, { width, height, pixels, thumbnail }) {
  const views = { ".view-picture": thumbnail, ".view-pixels": drawPixels(pixels) };
  const labels = { ".view-picture": name, ".view-pixels": `${name}: the 32 by 32 pixels that the network sees` };
  for (const [selector, canvas] of Object.entries(views)) {
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", labels[selector]);
    card.querySelector(`${selector} .frame`).append(canvas);
  }
  card.querySelector(".view-picture figcaption").textContent = `${width} × ${height}`;
}

function showClasses(card, top) {
  card.querySelector(".verdict .label").textContent = top[0].label;
  card.querySelector(".verdict .probability").textContent = formatShare(top[0].probability);
  card.querySelector(".bars").append(
    ...top.map(({ label, probability }) => {
      const bar = element("bar").content.cloneNode(true).firstElementChild;
      bar.querySelector(".label").textContent = label;
      bar.querySelector(".label").title = label;
      bar.querySelector(".fill").style.width = `${100 * probability}%`;
      bar.querySelector(".probability").textContent = formatShare(probability);
      return bar;
    }),
  );
}

function showError(card, message) {
  card.classList.add("failed");
  card.querySelector(".views").remove();
  card.querySelector(".verdict").textContent = message;
  card.querySelector(".bars").remove();
  card.querySelector(".times").remove();
}

function showSummary() {
  const good = results.filter((result) => !result.error);
  const parts = [`${count(good.length, "picture")} classified`];
  if (good.length < results.length) parts.push(`${results.length - good.length} refused`);
  if (good.length > 1) {
    const time = formatTime(median(good.map((result) => result.milliseconds)));
    parts.push(`${page.mode === "server" ? "server" : "network"} ${time} per picture (median)`);
  }
  element("summary").textContent = parts.join(" · ");
}

/** For screen readers: one sentence for a batch, not one for each element that changes. */
function announce(batch) {
  const lines = batch.slice(0, 3).map(({ name, error, top }) =>
    error ? `${name} ${error}.` : `${name}: ${top[0].label}, ${formatShare(top[0].probability)}.`,
  );
  element("live").textContent =
    batch.length <= 3 ? lines.join(" ") : `${count(batch.length, "picture")}: ${element("summary").textContent}.`;
}

function clearResults() {
  results.length = 0;
  element("cards").replaceChildren();
  element("results").hidden = true;
  element("live").textContent = "Results cleared.";
  element("files").focus();
}

// ---- The model and the state of the page ----

function showModel() {
  const classes = count(page.classes.length, "class", "classes");
  const place =
    page.mode === "server"
      ? "Pictures are sent to the server that this page came from."
      : "It runs inside this page: no picture leaves your device.";
  element("lede").textContent =
    `A small neural network picks the likeliest of ${classes}, even for a picture that shows none of them. ${place}`;
  fillList("figures", page.figures.map(([figure, meaning]) => [meaning, figure]));
  fillList("checks", page.checks);
  const details = element("classes");
  details.open = page.classes.length <= 12;
  details.querySelector("summary").textContent = page.classes.length <= 12 ? "Classes" : `All ${classes}`;
  details.querySelector("ul").append(...page.classes.map((name) => withText("li", name)));
  const runtime = `ONNX Runtime Web ${page.runtime.version} runs the network inside this page. It is distributed under this license:`;
  element("runtime").textContent = page.mode === "server" ? "The network runs on the server, in ONNX Runtime:" : runtime;
  element("license").textContent = page.runtime.license;
  element("footer").textContent = `Made with cifar ${page.version}.`;
}

function fillList(id, rows) {
  element(id).append(
    ...rows.map(([term, description]) => {
      const row = document.createElement("div");
      row.append(withText("dt", term), withText("dd", description));
      return row;
    }),
  );
}

function withText(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

function setStatus(state, text) {
  element("status").dataset.state = state;
  element("status").textContent = text;
}

function showNotice(text, id = "notice") {
  element(id).textContent = text;
  element(id).hidden = !text;
}

function formatTime(milliseconds) {
  return `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms`;
}

/** 100.0% and 0.0% only where they are exact: a network is never certain. */
function formatShare(probability) {
  if (probability > 0.999 && probability < 1) return "> 99.9%";
  if (probability < 0.001 && probability > 0) return "< 0.1%";
  return `${(100 * probability).toFixed(1)}%`;
}

function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

function median(values) {
  const sorted = values.toSorted((one, other) => one - other);
  return sorted[Math.trunc(sorted.length / 2)];
}

function nextFrame() {
  return new Promise((resolve) => setTimeout(resolve)); // requestAnimationFrame rests while the page is hidden
}

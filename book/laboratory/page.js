"use strict";

// The page: what the reader asks goes to the worker, what comes back is painted. ALICE (the weights, the
// worker's source, the settings) comes from alice.js, the elements from page.html.

const SIDE = 64, PLACES = SIDE * SIDE, STRANGER = 10, SAMPLE = 25;
const PRESET = {seed: 1, t: 500, map: "h", k: 3, direction: 1, strength: 0, random: 1, find: 0};
const REST = 250; // ms without a move of the slider before the sample's own steps are taken
const NINE = [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1];
const SIMD = Uint8Array.of( // a program of one instruction on four numbers at once
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11,
);
const TOO_OLD = "ALICE cannot live in this browser: it lacks WebAssembly with SIMD, workers or " +
  "DecompressionStream. Chrome and Edge have them from 2021 on, Firefox from 2023, Safari from 16.4.";
const MAPS = {
  h: "From x to h, the 8192 numbers of her bottleneck: what changes her idea of the picture most?",
  pooled: "From x to the 128 channels of h, each summed over all places: what changes most, wherever it is?",
  mean: "From x to the picture she expects under the snow: what changes that picture most?",
};
const $ = (name) => document.getElementById(`lab-${name}`);
const clinic = {}; // the patient on the couch: seed, image, path; what was found; the random direction

// ---- the worker

let worker = null, asked = 0;
let visit = 0; // counts the patients: what an earlier one's jobs still bring is not shown
const waiting = new Map();

// Sends a job; gives its last message. `seen` hears of each message before that.
function ask(op, job = {}, seen = () => {}) {
  return new Promise((done) => {
    asked += 1;
    waiting.set(asked, {done, seen, mine: op === "wake" ? null : visit});
    worker.postMessage({id: asked, op, ...job});
  });
}

function heard({data}) {
  const {done, seen, mine} = waiting.get(data.id), past = mine !== null && mine !== visit;
  if (data.state === "running") return past || seen(data);
  waiting.delete(data.id);
  if (past) return done({...data, state: "dropped"});
  if (data.state === "failed") alarm(`${data.op}: ${data.problem}`);
  return done(data);
}

// Bytes from the text of alice.js: seven bits a character, gzip within, and within that perhaps
// the first bytes of all numbers before the second ones. In pieces, so that little is held twice.
async function unpacked({text, length, halves}) {
  const gzip = new DecompressionStream("gzip"), bytes = new Uint8Array(length);
  const reader = gzip.readable.getReader(), half = length / 2;
  const place = halves ? (i) => (i < half ? 2 * i : 2 * (i - half) + 1) : (i) => i;
  const fed = feed(gzip.writable.getWriter(), text);
  for (let at = 0; at < length; ) {
    const {value} = await reader.read();
    for (let i = 0; i < value.length; i++) bytes[place(at++)] = value[i];
  }
  await fed;
  return bytes;
}

const PIECE = 7 * 8192; // characters

async function feed(writer, text) {
  for (let start = 0; start < text.length; start += PIECE) {
    const end = Math.min(start + PIECE, text.length);
    const piece = new Uint8Array(((end - start) * 7) >> 3);
    for (let i = start, at = 0, held = 0, bits = 0; i < end; i++) {
      held = ((held << 7) | (text.charCodeAt(i) & 127)) & 0xffff;
      bits += 7;
      if (bits >= 8) piece[at++] = held >> (bits -= 8);
    }
    await writer.write(piece);
  }
  await writer.close();
}

async function wakeAlice() {
  worker = new Worker(URL.createObjectURL(new Blob([ALICE.worker], {type: "text/javascript"})));
  worker.onmessage = heard;
  worker.onerror = (event) => alarm(`the worker stopped: ${event.message}`);
  const names = ["kernel", "weights", "reader", "average"];
  const bytes = await Promise.all(names.map((name) => unpacked(ALICE[name])));
  const parts = Object.fromEntries(names.map((name, i) => [name, bytes[i]]));
  parts.average = new Float32Array(parts.average.buffer);
  parts.clip = ALICE.treatment.clip;
  for (const name of names) ALICE[name] = null;
  return ask("wake", {parts}, undefined, names.map((name) => parts[name].buffer));
}

// ---- what is seen

function alarm(text) {
  say("");
  $("alarm").textContent = text;
  $("alarm").hidden = false;
}

function say(text) {
  $("state").textContent = text;
}

function progress(share, text) {
  $("bar").value = share;
  $("step").textContent = text;
}

// An image (3, 64, 64) in [-1, 1] on a canvas.
function paint(canvas, image) {
  const pixels = new ImageData(SIDE, SIDE);
  for (let i = 0; i < PLACES; i++) {
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = 127.5 * (1 + image[c * PLACES + i]);
    pixels.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

// A direction, its mean over the colours in shades for signed numbers, full at its largest.
function paintSigned(canvas, v) {
  const pixels = new ImageData(SIDE, SIDE), last = ALICE.shades.length - 1;
  const grey = Float32Array.from({length: PLACES}, (_, i) => (v[i] + v[PLACES + i] + v[2 * PLACES + i]) / 3);
  const most = grey.reduce((a, b) => Math.max(a, Math.abs(b)), 1e-12);
  for (let i = 0; i < PLACES; i++) {
    const shade = parseInt(ALICE.shades[Math.round(((grey[i] / most + 1) / 2) * last)].slice(1), 16);
    pixels.data.set([shade >> 16, (shade >> 8) & 255, shade & 255, 255], 4 * i);
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

const short = (number, digits = 2) => number.toFixed(digits).replace(/^(-?)0\./, "$1.").replace("-", "\u2212");

let reading = Promise.resolve();
const shown = {}; // the image in each frame

// The picture in the named frame: painted, described, and read, one after another.
async function show(name, image, words) {
  shown[name] = image;
  paint($(name), image);
  $(name).setAttribute("aria-label", words);
  reading = reading.then(() => ask("read", {image}));
  const read = await reading;
  if (read.state !== "done" || shown[name] !== image) return null;
  const p = read.factors[STRANGER], there = p > 0.5;
  const line = $(`${name}-reading`);
  line.textContent = `P(Stranger) ${short(p)}`;
  line.dataset.there = there ? "yes" : "no";
  $(name).setAttribute("aria-label", `${words}. P(Stranger) ${short(p)}.`);
  return read.factors;
}

function clear(name) {
  delete shown[name];
  $(name).getContext("2d").clearRect(0, 0, SIDE, SIDE);
  $(name).setAttribute("aria-label", "No picture yet");
  $(`${name}-reading`).textContent = "\u00a0";
  delete $(`${name}-reading`).dataset.there;
}

function enable(on, ...names) {
  for (const name of names) $(name).disabled = !on;
}

// ---- 1: a puppet

const seedNow = () => Number($("seed").value);

function goodSeed() {
  const good = $("seed").checkValidity() && $("seed").value !== "";
  if (!good) say("The seed is a whole number from 0 on.");
  return good;
}

async function draw() {
  if (!goodSeed()) return false;
  $("alarm").hidden = true;
  forget();
  const seed = seedNow(), began = performance.now();
  $("same").textContent = seed;
  say(`She dreams puppet ${seed} \u2026`);
  const job = await ask("draw", {seed, index: 0}, ({t, clean, step, steps}) => {
    paint($("dreamt"), clean);
    progress(step / steps, `t = ${t}`);
  });
  if (job.state !== "done") return false;
  Object.assign(clinic, {seed, image: job.image, path: job.path});
  await newControl();
  const factors = await show("dreamt", job.image, `Puppet of seed ${seed}`);
  for (const name of ["dragged", "beside"]) await show(name, job.image, `Puppet of seed ${seed}, untouched`);
  if (!factors) return false;
  placeRegion(factors);
  outline();
  enable(true, "find", "next", "give");
  progress(1, `${SAMPLE} network calls, ${seconds(began)}`);
  say(factors[STRANGER] > 0.5 ? "Somebody stands behind this puppet." : "This puppet is alone.");
  remember();
  return true;
}

const seconds = (began) => `${((performance.now() - began) / 1000).toFixed(1)} s`;

// Away with what belonged to the last patient, and with what is still at work for her.
function forget() {
  visit += 1;
  for (const what of ["draw", "directions", "drag", "strip", "treat"]) ask("stop", {what});
  for (const name of ["image", "path"]) delete clinic[name];
  enable(false, "find", "next", "give");
  unfound();
  outline();
  for (const name of ["dragged", "beside", "cured"]) clear(name);
  enable(false, "stop");
  $("course").textContent = "\u00a0";
}

// Away with the directions and what was made of them.
function unfound() {
  delete clinic.found;
  wanted += 1;
  enable(false, "strength", "zero", "png", "strip", "json");
  unstrip();
  offer([]);
  strengthen(0);
  $("dragged-name").textContent = "Dragged";
}

// Away with the strip, which is of one direction.
function unstrip() {
  if (worker) ask("stop", {what: "strip"});
  enable(false, "save-strip");
  $("nine").replaceChildren();
}

// The random direction, of length 1, that its number says.
async function newControl() {
  const job = await ask("random", {seed: clinic.control});
  if (job.state === "done") clinic.random = job.v;
}

// ---- 2: the directions

const timeNow = () => Number($("t").value);

async function find() {
  if (!clinic.path) return false;
  const t = timeNow(), map = $("map").value, k = Number($("k").value), began = performance.now();
  const {x} = clinic.path.find((one) => one.t === t);
  unfound();
  say("Searching by push and pull \u2026");
  const job = await ask("directions", {x, t, map, k, tol: 1e-3}, ({steps, S, residuals, V}) => {
    offer(V, S, residuals);
    const left = Math.max(...residuals) / (S[0] || 1);
    progress(Math.min(1, Math.log(left) / Math.log(1e-3)), `${steps} pushes, ${steps} pulls`);
  });
  if (job.state !== "done") return false;
  clinic.found = {...job, x, t, map};
  offer(job.V, job.S, job.residuals);
  if (job.problem) alarm(job.problem);
  progress(1, `${job.steps} pushes and pulls, ${seconds(began)}`);
  say(`Found ${k === 1 ? "the direction" : `${k} directions`}. Choose one, then move the slider.`);
  enable(true, "strength", "zero", "png", "strip", "json");
  remember();
  drag();
  return true;
}

// The found directions as choices; the frames stay, so that nothing jumps while they sharpen.
function offer(V, S = [], residuals = []) {
  const box = $("directions"), tiles = box.getElementsByTagName("label");
  while (tiles.length > V.length) tiles[tiles.length - 1].remove();
  while (tiles.length < V.length) box.append(tile(tiles.length + 1));
  V.forEach((v, i) => {
    paintSigned(tiles[i].querySelector("canvas"), v);
    tiles[i].querySelector("small").textContent = `s = ${S[i].toFixed(2)} \u00b1 ${short(residuals[i])}`;
  });
  others(V.length);
}

// What may stand beside the dragged picture: chance, or another direction.
function others(count) {
  const other = $("other"), kept = other.value;
  other.length = 2;
  for (let i = 1; i <= count; i++) if (i !== Math.min(chosen(), count)) other.add(new Option(`direction ${i}`, i));
  other.value = kept;
  if (other.selectedIndex < 0) other.value = "random";
}

function tile(number) {
  const made = document.createElement("label");
  made.innerHTML = `<input type="radio" name="lab-direction" value="${number}"><span><canvas width="64" height="64"></canvas>direction ${number}<small></small></span>`;
  const wanted = clinic.preset?.direction ?? 1;
  made.firstChild.checked = number === wanted;
  return made;
}

const chosen = () => Number(document.querySelector("[name=lab-direction]:checked")?.value ?? 1);

// ---- 3: the drag

function strengthen(value) {
  $("strength").value = value;
  $("amount").textContent = short(strengthNow());
}

const strengthNow = () => Number($("strength").value);

// The two directions that are dragged: frame, direction, and what it is called.
function frames() {
  const {V} = clinic.found, other = $("other").value, number = Math.min(chosen(), V.length);
  const along = (one) => [V[one - 1], `direction ${one}`];
  const beside = other === "random" ? [clinic.random, "a random direction"] : along(other);
  return [["dragged", ...along(number)], ["beside", ...beside]];
}

let wanted = 0, previewing = false;

// Follows the slider: a preview of 4 network calls at once, and the sample's own at rest. A preview is
// finished before the next begins, else a moving slider would show nothing.
async function drag() {
  wanted += 1;
  enable(false, "png");
  if (!clinic.found || previewing) return;
  previewing = true;
  let mine;
  do {
    mine = wanted;
    await drawn(4, mine);
  } while (mine !== wanted && clinic.found);
  previewing = false;
  await new Promise((done) => setTimeout(done, REST));
  if (mine !== wanted || !clinic.found) return;
  const began = performance.now();
  if (!(await drawn("all", mine)) || !clinic.found) return;
  enable(true, "png");
  if (strengthNow() === 0) return;
  progress(1, `${callsFrom(clinic.found.t)} calls a picture, ${seconds(began)}`);
  remember();
}

const callsFrom = (t) => ALICE.times.filter((time) => time <= t).length;

// Both dragged pictures, made with so many network calls; false where something newer is asked.
async function drawn(calls, mine) {
  const strength = strengthNow(), {x, t} = clinic.found;
  for (const [name, v, words] of frames()) {
    const still = strength === 0;
    const job = still ? {state: "done", image: clinic.image} : await ask("drag", {x, t, v, strength, calls});
    if (job.state !== "done" || !clinic.found || (calls === "all" && mine !== wanted)) return false;
    const draft = calls === "all" ? "" : ", a draft";
    if (name === "dragged") $("dragged-name").textContent = still ? "Dragged" : `Along ${words}${draft}`;
    const how = still ? "untouched" : `dragged along ${words} by ${short(strength)}`;
    if (!(await show(name, job.image, `Puppet of seed ${clinic.seed}, ${how}`))) return false;
  }
  const [there, beside] = ["dragged", "beside"].map((name) => $(`${name}-reading`).textContent);
  if (calls === "all" && strength) say(`Dragged by ${short(strength)}: ${there}; beside it ${beside}.`);
  return true;
}

// ---- saving

function save(name, content, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], {type}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const fileName = (kind) => `alice-seed${clinic.seed}-t${clinic.found.t}-${clinic.found.map}-${chosen()}${kind}`;

// Canvases side by side, each pixel `times` wide, as a PNG file.
function savePicture(name, canvases, times) {
  const sheet = document.createElement("canvas"), size = SIDE * times, pen = sheet.getContext("2d");
  [sheet.width, sheet.height] = [size * canvases.length, size];
  pen.imageSmoothingEnabled = false;
  canvases.forEach((canvas, i) => pen.drawImage(canvas, i * size, 0, size, size));
  return new Promise((done) => sheet.toBlob((blob) => done(save(name, blob, "image/png"))));
}

// Nine pictures along the direction, from minus to plus the strength; each leads to its strength.
async function makeStrip() {
  const most = Math.abs(strengthNow()) || 0.5, strengths = NINE.map((share) => share * most);
  const {x, t} = clinic.found, [[, v, words]] = frames(), box = $("nine"), began = performance.now();
  say("Nine pictures, one after another \u2026");
  enable(false, "save-strip");
  box.replaceChildren(...strengths.map(frameOfStrip));
  const job = await ask("strip", {x, t, v, strengths, calls: "all"}, ({i, image}) => {
    paint(box.children[i].firstChild, image);
    progress((i + 1) / NINE.length, `picture ${i + 1} of ${NINE.length}`);
  });
  if (job.state !== "done") return;
  clinic.strip = fileName(`-strip${most}.png`);
  enable(true, "save-strip");
  progress(1, `nine pictures, ${seconds(began)}`);
  say(`Nine strengths along ${words}, from ${short(-most)} to ${short(most)}.`);
}

function frameOfStrip(strength) {
  const made = document.createElement("button");
  made.type = "button";
  made.innerHTML = `<canvas width="64" height="64"></canvas>${short(strength)}`;
  made.setAttribute("aria-label", `drag by ${short(strength)}`);
  made.onclick = () => {
    strengthen(strength);
    drag();
  };
  return made;
}

// ---- 4: the treatment

const region = {left: 0, top: 0, width: 16, height: 48};

// The box where the reader sees the Stranger, or where he might have stood.
function placeRegion(factors) {
  const [side, height] = [2 * factors[STRANGER + 1] - 1, 0.25 + 0.55 * factors[STRANGER + 2]];
  const centre = (side < 0 ? -0.66 : 0.66) + 0.11 * side, margin = 2, half = (0.17 * SIDE) / 2 + margin;
  const left = ((centre + 1) * SIDE) / 2 - half, top = ((1 - height) * SIDE) / 2 - margin;
  setRegion(left, top, 2 * half, SIDE - top);
}

// The box is seen while there is a picture to place it on, and a treatment to place it for.
function outline() {
  $("region").hidden = !$("treat").open || !clinic.image;
}

function setRegion(left, top, width, height) {
  const within = (value, low, high) => Math.round(Math.min(Math.max(value, low), high));
  region.width = within(width, 2, SIDE);
  region.height = within(height, 2, SIDE);
  region.left = within(left, 0, SIDE - region.width);
  region.top = within(top, 0, SIDE - region.height);
  for (const [name, value] of Object.entries(region)) $("region").style[name] = `${(100 * value) / SIDE}%`;
  const right = region.left + region.width - 1, bottom = region.top + region.height - 1;
  $("region").setAttribute("aria-label", `Region: columns ${region.left} to ${right}, rows ${region.top} to ${bottom}`);
}

function mask() {
  return Float32Array.from({length: PLACES}, (_, i) => {
    const column = i % SIDE, row = Math.floor(i / SIDE);
    const across = column >= region.left && column < region.left + region.width;
    return Number(across && row >= region.top && row < region.top + region.height);
  });
}

function regionKey(event) {
  const steps = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
  if (!steps) return;
  event.preventDefault();
  const {left, top, width, height} = region, [across, down] = steps;
  if (event.shiftKey) setRegion(left, top, width + across, height + down);
  else setRegion(left + across, top + down, width, height);
}

// A box drawn with the mouse or a finger on the first picture, while there is one to place.
function drawRegion(event) {
  if (!$("treat").open || !clinic.image) return;
  event.preventDefault();
  const screen = $("screen"), box = screen.getBoundingClientRect();
  const pixel = SIDE / box.width;
  const place = ({clientX, clientY}) => [(clientX - box.left) * pixel, (clientY - box.top) * pixel];
  const [x, y] = place(event), {left, top, width, height} = region;
  const held = event.target === $("region");
  const moved = (now) => {
    const [x2, y2] = place(now);
    if (held) setRegion(left + x2 - x, top + y2 - y, width, height);
    else setRegion(Math.min(x, x2), Math.min(y, y2), Math.abs(x2 - x), Math.abs(y2 - y));
  };
  screen.setPointerCapture(event.pointerId);
  $("region").focus();
  screen.onpointermove = moved;
  screen.onpointerup = screen.onpointercancel = () => { screen.onpointermove = null; };
}

async function treat() {
  const {seed, path} = clinic;
  const dose = Number($("dose").value), began = performance.now();
  say("The course is under way: about a minute.");
  enable(false, "give");
  enable(true, "stop");
  const job = await ask("treat", {path, region: mask(), dose}, ({t, what, image}) => {
    if (image) paint($("cured"), image);
    progress(1 - t / ALICE.times[0], `t = ${t}`);
    $("course").textContent = `t = ${t}: ${what}`;
  });
  if (clinic.path !== path) return;
  enable(true, "give");
  enable(false, "stop");
  if (job.state !== "done") {
    $("course").textContent = "\u00a0";
    progress(0, "");
    return say("The course was stopped.");
  }
  await show("cured", job.image, `Puppet of seed ${seed}, treated with a dose of ${dose}`);
  $("course").textContent = `The whole course took ${seconds(began)}.`;
  progress(1, "the whole course");
  const still = $("cured-reading").dataset.there === "yes" ? " He is still there: does the box stand around him?" : "";
  say(`Treated: ${$("cured-reading").textContent}.${still}`);
}

// ---- presets and the address

function presets() {
  const given = new URLSearchParams(location.hash.slice(1)), preset = {...PRESET};
  for (const name of Object.keys(PRESET)) {
    const value = given.get(name);
    if (value === null) continue;
    preset[name] = name === "map" ? value : Number(value);
  }
  const within = (value, low, high, other) => (value >= low && value <= high ? value : other);
  preset.seed = Number.isSafeInteger(preset.seed) && preset.seed >= 0 ? preset.seed : PRESET.seed;
  preset.t = ALICE.times.includes(preset.t) ? preset.t : PRESET.t;
  preset.map = Object.hasOwn(MAPS, preset.map) ? preset.map : PRESET.map;
  preset.k = within(Math.round(preset.k), 1, $("k").length, PRESET.k);
  preset.direction = within(Math.round(preset.direction), 1, preset.k, 1);
  preset.random = Number.isSafeInteger(preset.random) && preset.random >= 0 ? preset.random : PRESET.random;
  preset.strength = within(preset.strength, Number($("strength").min), Number($("strength").max), 0);
  return preset;
}

function set(preset) {
  clinic.preset = preset;
  clinic.control = preset.random;
  for (const name of ["seed", "t", "map", "k"]) $(name).value = preset[name];
  $("same").textContent = preset.seed;
  $("other").value = "random";
  explain();
}

// What the address asks for: with find=1 all of it, without a click.
async function follow() {
  const preset = presets();
  set(preset);
  if (!preset.find || !(await draw()) || !(await find())) return;
  strengthen(preset.strength);
  drag();
}

// The address leads here again: it can be copied, mailed, or set as a link.
function remember() {
  const {seed, found} = clinic;
  const now = {seed, t: found?.t ?? timeNow(), map: found?.map ?? $("map").value, k: found?.V.length ?? $("k").value};
  if (found) Object.assign(now, {direction: chosen(), strength: strengthNow(), random: clinic.control, find: 1});
  history.replaceState(null, "", `#${new URLSearchParams(now)}`);
}

function explain() {
  $("told").textContent = `${MAPS[$("map").value]} At t = ${timeNow()} ${stage(timeNow())}`;
}

function stage(t) {
  if (t > 700) return "all is snow, and a direction turns the whole scene.";
  if (t > 300) return "the scene is settled and the details are not.";
  return "only fine detail is left to decide.";
}

// ---- together

function reset() {
  history.replaceState(null, "", location.pathname + location.search);
  forget();
  clear("dreamt");
  $("treat").open = false;
  set(PRESET);
  progress(0, "");
  say("Everything is as at the beginning. Press Dream.");
}

function another() {
  const next = seedNow() + 1;
  if (!goodSeed() || !Number.isSafeInteger(next)) return say("The seed is a whole number from 0 on.");
  $("seed").value = next;
  return draw();
}

// Another question makes the directions those of an old one.
async function askAnew() {
  explain();
  const {found, image} = clinic;
  if (!found) return;
  unfound();
  say("That is another question: find them again.");
  for (const name of ["dragged", "beside"]) await show(name, image, `Puppet of seed ${clinic.seed}, untouched`);
}

// The other choice for the third picture, or another random direction in its place.
async function compare() {
  if ($("other").value === "again") {
    clinic.control += 1;
    $("other").value = "random";
    await newControl();
  }
  return drag();
}

function choose() {
  unstrip();
  others(clinic.found.V.length);
  return drag();
}

function fill() {
  for (const t of ALICE.times) $("t").add(new Option(t, t));
  const names = ["light", "full"];
  ALICE.treatment.doses.forEach((dose, i) => $("dose").add(new Option(`${names[i] ?? ""} ${short(dose, 3)}`, dose)));
  $("dose").selectedIndex = ALICE.treatment.doses.length - 1;
}

function listen() {
  $("draw").onclick = draw;
  $("next").onclick = another;
  $("reset").onclick = reset;
  $("find").onclick = find;
  $("give").onclick = treat;
  $("strip").onclick = makeStrip;
  $("save-strip").onclick = () => savePicture(clinic.strip, [...$("nine").getElementsByTagName("canvas")], 4);
  $("png").onclick = () => savePicture(fileName(`-by${strengthNow()}.png`), [$("dragged")], 8);
  $("json").onclick = saveDirection;
  $("seed").onkeydown = (event) => { if (event.key === "Enter" && !$("draw").disabled) draw(); };
  $("zero").onclick = () => { strengthen(0); drag(); };
  $("strength").oninput = () => { strengthen(strengthNow()); drag(); };
  $("other").onchange = compare;
  $("directions").onchange = choose;
  $("map").onchange = $("t").onchange = askAnew;
  $("stop").onclick = () => ask("stop", {what: "treat"});
  $("look").onclick = () => {
    $("region").focus();
    $("region").scrollIntoView({block: "center"});
  };
  $("treat").ontoggle = outline;
  $("region").onkeydown = regionKey;
  $("screen").onpointerdown = drawRegion;
  addEventListener("hashchange", () => location.hash.includes("=") && follow());
}

async function saveDirection() {
  const [[, v]] = frames(), {seed} = clinic, {t, map} = clinic.found, {model} = ALICE;
  const job = await ask("save", {model, seed, index: 0, t, map, strength: strengthNow(), v});
  if (job.state === "done") save(fileName(".json"), job.text, "application/json");
}

async function open() {
  const needed = ["Worker", "DecompressionStream", "WebAssembly"].every((name) => name in globalThis);
  if (!needed || !WebAssembly.validate(SIMD)) return alarm(TOO_OLD);
  fill();
  set(presets());
  listen();
  const woken = await wakeAlice();
  if (woken.state !== "done") return say("She stays asleep.");
  enable(true, "draw");
  say(`ALICE is awake, in ${(woken.ms / 1000).toFixed(1)} s. Press Dream.`);
  return follow();
}

open().catch((error) => alarm(String(error.message ?? error)));

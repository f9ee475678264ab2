// The left side of the page: what is asked for, and the conversation with the server.

import { $, begin, choice, element, finish, grow, setUpPictures, url } from "./pictures.js";

const METHODS = ["sample", "inpaint", "vary", "blend"];
const FEW_CLASSES = 20; // more can be searched
const SMALL = 128; // pixels of a side; smaller pictures show their pixels as squares
const SHOWN = {
  step: (value) => `${value} of ${model.steps}`,
  count: (value) => value,
  guidance: (value) => value.toFixed(1),
  temperature: (value) => value.toFixed(2),
};

let model; // facts about the model
let method = "sample";
let source = ""; // PNG in base64: what "Redraw a part" and "Vary" change
let running = null; // the AbortController of a request

function complain(sentence) {
  $("error").textContent = sentence;
  $("error").hidden = !sentence;
}

// What is asked for

function setUp() {
  document.title = `${model.name} - RDPM`;
  $("name").textContent = model.name;
  const colour = model.grey ? "grey" : "colour";
  $("facts").textContent =
    `${model.classes.length} classes, ${model.size} × ${model.size} pixels in ${colour}, ${model.steps} steps`;
  document.body.classList.toggle("smooth", model.size >= SMALL);
  $("filter").hidden = model.classes.length <= FEW_CLASSES;
  model.classes.forEach((name, label) => {
    const box = element("input", { type: "checkbox", value: label, className: "out-of-sight", checked: label === 0 });
    $("classes").append(element("label", { className: "chip" }, box, name));
    for (const id of ["label", "first", "second"]) $(id).append(element("option", { value: label }, name));
  });
  $("second").value = Math.min(1, model.classes.length - 1);
  $("step").max = model.steps;
  $("step").value = Math.floor(model.steps / 2);
  $("count").max = model.most;
  setUpCells();
  setUpPictures(model);
  Object.keys(SHOWN).forEach(showValue);
  show("sample");
}

function setUpCells() {
  const cells = $("cells");
  cells.style.gridTemplate = `repeat(${model.grid}, 1fr) / repeat(${model.grid}, 1fr)`;
  for (let i = 0; i < model.grid ** 2; i++) {
    const name = `Row ${Math.floor(i / model.grid) + 1}, column ${(i % model.grid) + 1}`;
    const cell = element("button", { type: "button", ariaLabel: name, ariaPressed: "false" });
    cells.append(cell);
  }
  let paint = null; // "true" while painting, "false" while erasing
  const touch = (target) => {
    if (target?.parentElement === cells) target.ariaPressed = paint;
  };
  cells.addEventListener("pointerdown", (event) => {
    paint = String(event.target.ariaPressed !== "true");
    touch(event.target);
    event.preventDefault();
  });
  cells.addEventListener("pointermove", (event) => {
    if (paint) touch(document.elementFromPoint(event.clientX, event.clientY));
  });
  for (const end of ["pointerup", "pointercancel"]) window.addEventListener(end, () => (paint = null));
  cells.addEventListener("click", (event) => {
    if (event.detail === 0) event.target.ariaPressed = String(event.target.ariaPressed !== "true"); // by the keyboard
  });
}

function paintAll(pressed) {
  for (const cell of $("cells").children) cell.ariaPressed = String(pressed);
}

function cellRows() {
  const bits = [...$("cells").children].map((cell) => (cell.ariaPressed === "true" ? "1" : "0")).join("");
  return Array.from({ length: model.grid }, (_, row) => bits.slice(row * model.grid, (row + 1) * model.grid));
}

function show(name) {
  method = name;
  for (const each of METHODS) {
    $(`tab-${each}`).ariaSelected = String(each === name);
    $(`tab-${each}`).tabIndex = each === name ? 0 : -1;
  }
  for (const part of document.querySelectorAll("[data-for]")) part.hidden = !part.dataset.for.split(" ").includes(name);
  $("cells").hidden = name !== "inpaint" || !source;
  if (!source && ["inpaint", "vary"].includes(name)) take(choice());
  complain("");
}

function change(png) {
  source = png;
  $("picture").src = url(png);
  $("picture").hidden = false;
  $("no-picture").hidden = true;
  $("cells").hidden = method !== "inpaint";
  paintAll(false);
}

async function load(file) {
  complain("");
  try {
    const response = await fetch("/picture", { method: "POST", body: file });
    const answer = await response.json();
    if (response.ok) change(answer.picture);
    else complain(answer.error);
  } catch {
    complain("The picture did not reach the server; it may be too large, or the server has ended.");
  }
}

function asked() {
  const number = (id) => Number($(id).value);
  const common = { method, seed: number("seed"), guidance: number("guidance"), temperature: number("temperature") };
  if (method === "blend") return { ...common, labels: [number("first"), number("second")] };
  const picked = [...document.querySelectorAll("#classes :checked")].map((box) => Number(box.value));
  const classes = method === "sample" ? picked : [number("label")];
  if (!classes.length) throw new Error("Pick a class first.");
  const labels = Array.from({ length: number("count") }, (_, i) => classes[i % classes.length]);
  if (method === "sample") return { ...common, labels };
  if (!source) throw new Error("Load a picture first, or choose one that was drawn.");
  if (method === "vary") return { ...common, labels, picture: source, step: number("step") };
  if (!cellRows().join("").includes("1")) throw new Error("Paint over a part of the picture first.");
  return { ...common, labels, picture: source, cells: cellRows() };
}

// Drawing

async function draw() {
  complain("");
  let request;
  try {
    request = asked();
  } catch (error) {
    return complain(error.message);
  }
  running?.abort(); // an impatient second request takes the place of the first
  const mine = (running = new AbortController());
  $("stop").disabled = false;
  $("status").textContent = "Asking …";
  if (matchMedia("(max-width: 859px)").matches) $("results").scrollIntoView({ block: "start" }); // it is below
  try {
    await follow(request, mine.signal);
  } catch (error) {
    if (mine !== running) return;
    if (error.name === "AbortError") $("status").textContent = "Stopped.";
    else {
      $("status").textContent = "Not drawn.";
      complain(error.refusal ?? "The server does not answer; it may have ended.");
    }
  }
  if (mine === running) {
    running = null;
    $("stop").disabled = true;
  }
}

async function follow(request, signal) {
  const started = performance.now();
  const response = await fetch("/draw", { method: "POST", body: JSON.stringify(request), signal });
  if (!response.ok) throw { refusal: (await response.json()).error };
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let [begun, complete] = [false, false];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (text + value).split("\n");
    text = lines.pop();
    for (const event of lines.map(JSON.parse)) {
      if (event.error) throw { refusal: event.error };
      if ("ahead" in event) $("status").textContent = event.ahead ? `${event.ahead} ahead of you …` : "Drawing …";
      if ("step" in event) {
        if (!begun) begin(request);
        begun = true;
        grow(event);
        $("status").textContent = `Step ${event.step} of ${model.steps}`;
      }
      if ("python" in event) {
        complete = true;
        const pictures = finish(event);
        const seconds = ((performance.now() - started) / 1000).toFixed(1);
        $("status").textContent = `${pictures} ${pictures === 1 ? "picture" : "pictures"} in ${seconds} s`;
      }
    }
  }
  if (!complete) throw new Error("the answer was cut");
}

function showValue(id) {
  $(`${id}-value`).textContent = SHOWN[id](Number($(id).value));
}

function take(drawn) {
  if (!drawn) return;
  change(drawn.png);
  $("label").value = drawn.label;
}

function takeTo(name) {
  show(name);
  take(choice());
  $("form").scrollIntoView({ block: "start" });
}

function listen() {
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    draw();
  });
  for (const name of METHODS) $(`tab-${name}`).addEventListener("click", () => show(name));
  $("methods").addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: METHODS.length - 1 }[event.key];
    if (!by) return;
    show(METHODS[(METHODS.indexOf(method) + by) % METHODS.length]);
    $(`tab-${method}`).focus();
  });
  for (const id of Object.keys(SHOWN)) $(id).addEventListener("input", () => showValue(id));
  $("filter").addEventListener("input", () => {
    const wanted = $("filter").value.toLowerCase();
    for (const chip of $("classes").children) chip.hidden = !chip.textContent.toLowerCase().includes(wanted);
  });
  $("file").addEventListener("change", () => {
    if ($("file").files.length) load($("file").files[0]);
    $("file").value = ""; // so that the same file can be loaded again
  });
  $("all").addEventListener("click", () => paintAll(true));
  $("none").addEventListener("click", () => paintAll(false));
  $("new-seed").addEventListener("click", () => ($("seed").value = Math.floor(Math.random() * 2 ** 32)));
  $("stop").addEventListener("click", () => running?.abort());
  $("to-inpaint").addEventListener("click", () => takeTo("inpaint"));
  $("to-vary").addEventListener("click", () => takeTo("vary"));
}

fetch("/model")
  .then((response) => response.json())
  .then((facts) => {
    model = facts;
    listen();
    setUp();
  });

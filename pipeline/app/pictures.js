// The right side of the page: pictures while they grow, and what can be done with them.

export const $ = (id) => document.getElementById(id);
export const url = (png) => `data:image/png;base64,${png}`;

let model; // facts about the model
let drawn = null; // {labels, titles, steps}: steps[t - 1][i] is picture i after step t, a PNG in base64
let chosen = 0; // the number of a picture

export function element(kind, properties = {}, ...inside) {
  const made = Object.assign(document.createElement(kind), properties);
  made.append(...inside);
  return made;
}

export function setUpPictures(facts) {
  model = facts;
  $("shown").max = model.steps;
  $("weight").max = model.weights.length - 1;
  $("shown").addEventListener("input", render);
  $("weight").addEventListener("input", () => choose(Number($("weight").value)));
  $("copy").addEventListener("click", copy);
}

/** Make room for the pictures of a request. */
export function begin(request) {
  const [first, second] = request.labels.map((label) => model.classes[label]);
  const blend = request.method === "blend";
  const numbers = blend ? model.weights.map((_, i) => i) : request.labels.map((_, i) => i);
  drawn = {
    steps: [],
    labels: numbers.map((i) => request.labels[blend ? Math.round(model.weights[i]) : i]),
    titles: numbers.map((i) =>
      blend ? [`${Math.round(model.weights[i] * 100)}% of the way`] : [model.classes[request.labels[i]], `seed ${request.seed + i}`],
    ),
  };
  chosen = 0;
  $("after").hidden = true;
  $("slide").hidden = $("between").hidden = !blend;
  $("pictures").classList.toggle("strip", blend);
  if (blend) $("weight-label").textContent = `From ${first} to ${second}`;
  $("weight").value = 0;
  $("pictures").replaceChildren(
    ...drawn.titles.map((title, i) => {
      const lines = title.map((line) => element("small", {}, line));
      const button = element("button", { type: "button" }, element("img", { alt: title.join(", ") }), ...lines);
      button.addEventListener("click", () => choose(i));
      return button;
    }),
  );
}

/** Show pictures after another step. */
export function grow(event) {
  const pictures = (drawn.steps[event.step - 1] ??= []);
  event.pictures.forEach((png, i) => (pictures[event.first + i] = png));
  $("shown").value = event.step;
  render();
}

/** Show what can be done with pictures that are complete. Returns their number. */
export function finish(event) {
  $("python").textContent = event.python;
  $("save-source").hidden = !event.picture;
  if (event.picture) $("save-source").href = url(event.picture);
  $("after").hidden = false;
  render();
  return drawn.labels.length;
}

/** The picture that is chosen, its class and its PNG; null while none is complete. */
export const choice = () =>
  $("after").hidden ? null : { label: drawn.labels[chosen], png: drawn.steps.at(-1)[chosen] };

function choose(i) {
  chosen = i;
  $("weight").value = i;
  render();
}

function render() {
  const step = Number($("shown").value);
  const shown = drawn.steps[step - 1] ?? [];
  [...$("pictures").children].forEach((button, i) => {
    if (shown[i]) button.firstChild.src = url(shown[i]);
    button.ariaPressed = String(i === chosen);
  });
  $("shown-value").textContent = `${step} of ${model.steps}`;
  if (shown[chosen]) $("between").src = url(shown[chosen]);
  const title = drawn.titles[chosen].join(", ");
  $("between").alt = $("weight-value").textContent = title;
  if ($("after").hidden) return;
  $("chosen").textContent = `${title}, step by step`;
  $("growth").replaceChildren(
    ...drawn.steps.map((pictures, i) => {
      const picture = element("img", { src: url(pictures[chosen]), alt: `After step ${i + 1}` });
      return element("figure", {}, picture, element("figcaption", {}, i + 1));
    }),
  );
  $("save").href = url(choice().png);
}

async function copy() {
  try {
    await navigator.clipboard.writeText($("python").textContent);
    $("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($("python"));
    $("copy").textContent = "Press Ctrl+C";
  }
  setTimeout(() => ($("copy").textContent = "Copy"), 2000);
}

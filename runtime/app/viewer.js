// The slice viewer: a case, its label maps and probabilities come as one packet of bytes (see
// packet.py); slices are cut and drawn here, so that no step of the wheel asks the server.
//
// Arrays are uint8, x fastest, axes L, P, S: x grows to the patient's left, y to the back, z up.
// Planes are shown as radiologists look at them: the patient's right on the left of the screen.

const PLANES = {
  axial: { title: "Axial", across: 0, down: 1, through: 2, flip: false, sides: ["R", "L", "A", "P"] },
  coronal: { title: "Coronal", across: 0, down: 2, through: 1, flip: true, sides: ["R", "L", "S", "I"] },
  sagittal: { title: "Sagittal", across: 1, down: 2, through: 0, flip: true, sides: ["A", "P", "S", "I"] },
};
const LAYOUTS = {
  planes: "Three planes",
  grid: "Modalities, 2 x 2",
  row: "Modalities, in a row",
  one: "One slice",
};
const SHOWN = { prediction: "Prediction", truth: "Truth", difference: "Difference", heat: "Probability", none: "Nothing" };
const REGIONS = { WT: "Whole tumour", TC: "Tumour core", ET: "Enhancing tumour" };
const SWIPE_PX = 8; // of a finger, for a slice
const MISSED = [0, 114, 178], EXTRA = [213, 94, 0], AGREED = [240, 228, 66];

// Packets

export function headerOf(bytes) {
  const length = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength).getUint32(0, true);
  return [JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length))), 4 + length];
}

export async function decode(bytes) {
  const [header, start] = headerOf(bytes);
  const stream = new Blob([bytes.subarray(start)]).stream().pipeThrough(new DecompressionStream("gzip"));
  const body = new Uint8Array(await new Response(stream).arrayBuffer());
  const size = header.shape[0] * header.shape[1] * header.shape[2];
  header.layers = Object.fromEntries(
    header.layers.map((name, index) => [name, body.subarray(index * size, (index + 1) * size)]),
  );
  return header;
}

// Geometry. A position is a voxel (x, y, z) of the box.

export function planeSize(shape, plane) {
  const { across, down } = PLANES[plane];
  return [shape[across], shape[down]];
}

function strides(shape) {
  return [1, shape[0], shape[0] * shape[1]];
}

// The slice of `array` through `index`, row by row as displayed.
export function cut(array, shape, plane, index) {
  const { across, down, through, flip } = PLANES[plane];
  const step = strides(shape);
  const [width, height] = planeSize(shape, plane);
  const out = new Uint8Array(width * height);
  for (let row = 0; row < height; row += 1) {
    let from = index * step[through] + (flip ? height - 1 - row : row) * step[down];
    for (let to = row * width; to < (row + 1) * width; to += 1, from += step[across]) out[to] = array[from];
  }
  return out;
}

// The voxel under (u, v) in [0, 1) of a displayed slice.
export function voxelAt(shape, plane, index, u, v) {
  const { across, down, through, flip } = PLANES[plane];
  const [width, height] = planeSize(shape, plane);
  const inside = (value, size) => Math.min(Math.max(Math.floor(value * size), 0), size - 1);
  const at = [0, 0, 0];
  at[across] = inside(u, width);
  at[down] = flip ? height - 1 - inside(v, height) : inside(v, height);
  at[through] = index;
  return at;
}

// Number of a slice for people: from 1 on, counted over the whole volume.
export function sliceNumber(header, plane, index) {
  const { through } = PLANES[plane];
  return [header.start[through] + index + 1, header.full[through]];
}

// Painting

// An overlay as RGBA: what `colourOf` gives for each value, null for nothing.
function paint(target, values, colourOf, alpha) {
  for (let i = 0; i < values.length; i += 1) {
    const colour = colourOf(values[i], i);
    if (colour) target.set([colour[0], colour[1], colour[2], colour.length > 3 ? colour[3] : alpha], 4 * i);
  }
}

function canvasOf(width, height, fill) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  fill(image.data);
  context.putImageData(image, 0, 0);
  return canvas;
}

// Black through purple and orange to pale yellow: lightness grows all the way, so that it reads
// without colour too.
export function heat(value) {
  const stops = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];
  const at = (value / 255) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  return stops[low].map((start, i) => Math.round(start + (at - low) * (stops[low + 1][i] - start)));
}

// What is missed, what is extra, what agrees, in one region.
export function difference(prediction, truth, members) {
  const called = members.includes(prediction), true_ = members.includes(truth);
  if (called && true_) return "agreed";
  if (called) return "extra";
  return true_ ? "missed" : "";
}

// Line segments between pixels of different value, in pixel units, by the value they enclose.
export function outlines(values, width, height, wanted) {
  const found = new Map();
  const at = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? 0 : values[y * width + x]);
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const here = at(x, y);
      if (!wanted.has(here)) continue;
      if (!found.has(here)) found.set(here, []);
      const lines = found.get(here);
      if (at(x - 1, y) !== here) lines.push(x, y, x, y + 1);
      if (at(x + 1, y) !== here) lines.push(x + 1, y, x + 1, y + 1);
      if (at(x, y - 1) !== here) lines.push(x, y, x + 1, y);
      if (at(x, y + 1) !== here) lines.push(x, y + 1, x + 1, y + 1);
    }
  }
  return found;
}

// The viewer

class Viewer {
  constructor(root) {
    this.root = root;
    this.header = null;
    this.state = null;
    this.observer = new ResizeObserver(() => this.draw());
  }

  async show(bytes) {
    const { sha256 } = headerOf(bytes)[0];
    if (this.wanted === sha256) return;
    this.wanted = sha256;
    const header = await decode(bytes);
    // Another case may have come while this one was unpacked.
    if (this.wanted !== sha256) return;
    // The page is put together anew whenever something on it changes: what was looked at stays.
    const same = remembered.get(sha256);
    const before = this.state ?? same;
    this.header = header;
    this.state = same ?? {
      layout: before?.layout ?? "planes",
      plane: before?.plane ?? "axial",
      modality: header.modalities.includes(before?.modality) ? before.modality : header.modality,
      shown: "prediction",
      region: "WT",
      fill: before?.fill ?? 40,
      outline: before?.outline ?? true,
      smooth: before?.smooth ?? true,
      crosshair: before?.crosshair ?? true,
      labels: Object.fromEntries(header.labels.map((label) => [label.name, true])),
      at: [...header.at],
    };
    remembered.set(sha256, this.state);
    this.build();
    this.draw();
  }

  get options() {
    const { layers } = this.header;
    return Object.keys(SHOWN).filter((name) =>
      ({
        prediction: layers.prediction,
        truth: layers.truth,
        difference: layers.truth && layers.prediction,
        heat: layers.heat_WT,
        none: true,
      })[name]);
  }

  build() {
    const { header, root } = this;
    root.querySelector(".case").textContent = header.case;
    const choose = (name, options, label) => {
      const select = root.querySelector(`select[name=${name}]`);
      select.replaceChildren(...Object.entries(options).map(([value, title]) => new Option(title, value)));
      select.value = this.state[name];
      select.setAttribute("aria-label", label);
      select.onchange = () => this.set({ [name]: select.value });
    };
    choose("layout", LAYOUTS, "Layout");
    choose("plane", Object.fromEntries(Object.entries(PLANES).map(([name, one]) => [name, one.title])), "Plane");
    choose("modality", Object.fromEntries(header.modalities.map((name) => [name, name.toUpperCase()])), "Modality");
    choose("shown", Object.fromEntries(this.options.map((name) => [name, SHOWN[name]])), "Overlay");
    choose("region", REGIONS, "Region");
    const fill = root.querySelector("input[name=fill]");
    fill.value = this.state.fill;
    fill.oninput = () => this.set({ fill: Number(fill.value) });
    for (const name of ["outline", "smooth", "crosshair"]) {
      const box = root.querySelector(`input[name=${name}]`);
      box.checked = this.state[name];
      box.onchange = () => this.set({ [name]: box.checked });
    }
    this.arrange();
  }

  set(change) {
    const arranged = ["layout", "plane", "modality", "shown"].some((name) => name in change);
    Object.assign(this.state, change);
    if (arranged) this.arrange();
    this.draw();
  }

  // Width and height in mm that every panel shows: one scale for all of them.
  frame() {
    const { shape, spacing } = this.header;
    const sizes = this.panels().map(([plane]) => {
      const { across, down } = PLANES[plane];
      return [shape[across] * spacing[across], shape[down] * spacing[down]];
    });
    return [Math.max(...sizes.map((size) => size[0])), Math.max(...sizes.map((size) => size[1]))];
  }

  panels() {
    const { layout, plane, modality } = this.state;
    if (layout === "planes") return Object.keys(PLANES).map((name) => [name, modality]);
    if (layout === "one") return [[plane, modality]];
    return this.header.modalities.map((name) => [plane, name]);
  }

  arrange() {
    const { root, state } = this;
    root.querySelector(".viewer").dataset.layout = state.layout;
    root.querySelector("[data-for=plane]").hidden = state.layout === "planes";
    root.querySelector("[data-for=modality]").hidden = state.layout === "grid" || state.layout === "row";
    root.querySelector("[data-for=region]").hidden = !["difference", "heat"].includes(state.shown);
    root.querySelector("[data-for=outline]").hidden = ["heat", "none"].includes(state.shown);
    root.querySelector("[data-for=fill]").hidden = state.shown === "none";
    this.observer.disconnect();
    const panels = this.panels().map(([plane, modality]) => this.panel(plane, modality));
    const place = root.querySelector(".panels");
    place.style.setProperty("--count", panels.length);
    place.style.setProperty("--ratio", this.frame()[0] / this.frame()[1]);
    place.replaceChildren(...panels);
    for (const panel of panels) this.observer.observe(panel.querySelector("canvas"));
    this.sliders();
    this.legend();
  }

  panel(plane, modality) {
    const figure = document.createElement("figure");
    figure.tabIndex = 0;
    figure.dataset.plane = plane;
    figure.dataset.modality = modality;
    const { sides, title } = PLANES[plane];
    const marks = ["left", "right", "top", "bottom"].map((where, i) => `<span class="side ${where}">${sides[i]}</span>`);
    figure.innerHTML = `<figcaption></figcaption><div class="stage"><canvas></canvas>${marks.join("")}</div>`;
    figure.setAttribute("role", "img");
    figure.dataset.title = `${title}, ${modality.toUpperCase()}`;
    const canvas = figure.querySelector("canvas");
    const move = (by) => this.step(plane, by);
    figure.addEventListener("wheel", (event) => {
      event.preventDefault();
      move(event.deltaY > 0 ? -1 : 1);
    }, { passive: false });
    figure.addEventListener("keydown", (event) => {
      const by = { ArrowUp: 1, ArrowDown: -1, ArrowRight: 1, ArrowLeft: -1, PageUp: 10, PageDown: -10, Home: -1e4, End: 1e4 }[event.key];
      if (by === undefined) return;
      event.preventDefault();
      move(by);
    });
    const point = (event) => {
      const box = canvas.getBoundingClientRect();
      const [u, v] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
      this.go(voxelAt(this.header.shape, plane, this.state.at[PLANES[plane].through], u, v));
    };
    // A finger scrolls the page up and down, goes through the slices sideways, and points by a tap.
    let touch = null;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      if (event.pointerType === "touch") touch = { x: event.clientX, from: this.state.at[PLANES[plane].through], moved: false };
      else point(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!canvas.hasPointerCapture(event.pointerId)) return;
      if (!touch) {
        point(event);
        return;
      }
      const by = Math.trunc((event.clientX - touch.x) / SWIPE_PX);
      if (by !== 0) touch.moved = true;
      if (touch.moved) move(touch.from + by - this.state.at[PLANES[plane].through]);
    });
    canvas.addEventListener("pointerup", (event) => {
      if (event.pointerType === "touch" && touch && !touch.moved) point(event);
      touch = null;
    });
    canvas.addEventListener("pointercancel", () => {
      touch = null;
    });
    return figure;
  }

  sliders() {
    const planes = [...new Set(this.panels().map(([plane]) => plane))];
    this.root.querySelector(".sliders").replaceChildren(...planes.map((plane) => {
      const label = document.createElement("label");
      const { through, title } = PLANES[plane];
      label.innerHTML = `<span></span><input type="range" min="0" max="${this.header.shape[through] - 1}">`;
      label.dataset.plane = plane;
      const input = label.querySelector("input");
      input.setAttribute("aria-label", `${title} slice`);
      input.oninput = () => this.step(plane, Number(input.value) - this.state.at[through]);
      return label;
    }));
  }

  legend() {
    const { root, state, header } = this;
    const place = root.querySelector(".legend");
    if (state.shown === "difference") {
      place.replaceChildren(...[["agreed", AGREED, "in both"], ["missed", MISSED, "only in the truth"], ["extra", EXTRA, "only in the prediction"]]
        .map(([, colour, text]) => entry(colour, text)));
    } else if (state.shown === "heat") {
      const ramp = document.createElement("span");
      ramp.className = "ramp";
      const steps = Array.from({ length: 11 }, (_, i) => `rgb(${heat(i * 25.5).join(",")})`);
      ramp.style.background = `linear-gradient(90deg, ${steps.join(",")})`;
      place.replaceChildren("0", ramp, "1, probability");
    } else if (state.shown === "none") {
      place.replaceChildren();
    } else {
      place.replaceChildren(...header.labels.map((label) => {
        const item = entry(label.colour, `${label.name} ${label.title}`, "label");
        const box = document.createElement("input");
        box.type = "checkbox";
        box.checked = state.labels[label.name];
        box.onchange = () => {
          state.labels[label.name] = box.checked;
          for (const button of place.querySelectorAll("button")) {
            button.setAttribute("aria-pressed", this.pressed(header.regions[button.dataset.region]));
          }
          this.draw();
        };
        item.prepend(box);
        return item;
      }), ...Object.entries(header.regions).map(([name, members]) => this.switch(name, members)));
    }
  }

  // Whether just these labels are shown.
  pressed(members) {
    return this.header.labels.every((label) => this.state.labels[label.name] === members.includes(label.value));
  }

  // A button that shows the labels of one region and no others.
  switch(name, members) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.title = `${REGIONS[name]} only`;
    button.setAttribute("aria-pressed", this.pressed(members));
    button.onclick = () => {
      for (const label of this.header.labels) {
        this.state.labels[label.name] = members.includes(label.value);
      }
      this.legend();
      this.draw();
      this.root.querySelector(`.legend button[data-region=${name}]`).focus();
    };
    button.dataset.region = name;
    return button;
  }

  step(plane, by) {
    const { through } = PLANES[plane];
    const at = [...this.state.at];
    at[through] = Math.min(Math.max(at[through] + by, 0), this.header.shape[through] - 1);
    this.go(at);
  }

  go(at) {
    this.state.at = at;
    this.draw();
  }

  draw() {
    if (!this.header) return;
    for (const figure of this.root.querySelectorAll("figure")) this.drawPanel(figure);
    for (const label of this.root.querySelectorAll(".sliders label")) {
      const { plane } = label.dataset;
      const index = this.state.at[PLANES[plane].through];
      const [number, count] = sliceNumber(this.header, plane, index);
      label.querySelector("input").value = index;
      label.querySelector("span").textContent = `${PLANES[plane].title} ${number} of ${count}`;
    }
    const { at } = this.state;
    const { start, spacing, layers, labels } = this.header;
    const offset = at[0] + this.header.shape[0] * (at[1] + this.header.shape[1] * at[2]);
    const named = (layer) => labels.find((label) => label.value === layers[layer]?.[offset])?.name ?? "none";
    const parts = [`voxel ${at.map((value, i) => value + start[i]).join(", ")} (L, P, S)`];
    if (layers.prediction) parts.push(`prediction ${named("prediction")}`);
    if (layers.truth) parts.push(`truth ${named("truth")}`);
    if (layers.heat_WT) {
      parts.push(["WT", "TC", "ET"].map((name) => `P(${name}) ${(layers[`heat_${name}`][offset] / 255).toFixed(2)}`).join(" "));
    }
    this.root.querySelector(".readout").textContent = parts.join("  ·  ");
    this.root.querySelector(".viewer").dataset.at = at.join(",");
    this.root.querySelector(".viewer").dataset.spacing = spacing.join(",");
  }

  drawPanel(figure) {
    const { header, state } = this;
    const { plane, modality } = figure.dataset;
    const { shape, spacing, layers } = header;
    const { across, down, through, flip } = PLANES[plane];
    const index = state.at[through];
    const [width, height] = planeSize(shape, plane);
    const canvas = figure.querySelector("canvas");
    const [widest, highest] = this.frame();
    canvas.style.width = `${(100 * width * spacing[across]) / widest}%`;
    canvas.style.height = `${(100 * height * spacing[down]) / highest}%`;
    const scale = window.devicePixelRatio || 1;
    const [wide, high] = [Math.round(canvas.clientWidth * scale), Math.round(canvas.clientHeight * scale)];
    if (!wide || !high) return;
    if (canvas.width !== wide || canvas.height !== high) Object.assign(canvas, { width: wide, height: high });
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.imageSmoothingEnabled = state.smooth;
    context.imageSmoothingQuality = "high";
    const grey = cut(layers[modality], shape, plane, index);
    const base = canvasOf(width, height, (data) => paint(data, grey, (value) => [value, value, value], 255));
    context.drawImage(base, 0, 0, wide, high);
    this.drawOverlay(context, plane, index, wide, high);
    if (state.crosshair && state.layout !== "one") {
      const u = (state.at[across] + 0.5) / width;
      const v = ((flip ? height - 1 - state.at[down] : state.at[down]) + 0.5) / height;
      context.strokeStyle = "rgba(255,255,255,0.35)";
      context.lineWidth = scale;
      context.setLineDash([4 * scale, 4 * scale]);
      context.beginPath();
      context.moveTo(u * wide, 0);
      context.lineTo(u * wide, high);
      context.moveTo(0, v * high);
      context.lineTo(wide, v * high);
      context.stroke();
      context.setLineDash([]);
    }
    const [number, count] = sliceNumber(header, plane, index);
    // Side by side all are of one plane, and narrow: there is no room for its name.
    const many = state.layout === "grid" || state.layout === "row";
    const where = many ? "" : `${PLANES[plane].title.toLowerCase()} `;
    figure.querySelector("figcaption").textContent = `${modality.toUpperCase()} · ${where}${number}/${count}`;
    figure.setAttribute("aria-label", `${figure.dataset.title}, slice ${number} of ${count}`);
  }

  drawOverlay(context, plane, index, wide, high) {
    const { header, state } = this;
    const { shape, layers, regions } = header;
    const [width, height] = planeSize(shape, plane);
    const alpha = Math.round(2.55 * state.fill);
    if (state.shown === "none") return;
    if (state.shown === "heat") {
      const values = cut(layers[`heat_${state.region}`], shape, plane, index);
      const layer = canvasOf(width, height, (data) => paint(
        data, values, (value) => (value > 2 ? [...heat(value), Math.round(Math.min(1, value / 64) * alpha)] : null), alpha,
      ));
      context.drawImage(layer, 0, 0, wide, high);
      return;
    }
    let values, colours;
    if (state.shown === "difference") {
      const members = regions[state.region];
      const [called, real] = ["prediction", "truth"].map((name) => cut(layers[name], shape, plane, index));
      const kinds = { agreed: 1, missed: 2, extra: 3, "": 0 };
      values = called.map((value, i) => kinds[difference(value, real[i], members)]);
      colours = new Map([[1, AGREED], [2, MISSED], [3, EXTRA]]);
    } else {
      values = cut(layers[state.shown], shape, plane, index);
      colours = new Map(header.labels.filter((label) => state.labels[label.name]).map((label) => [label.value, label.colour]));
    }
    context.imageSmoothingEnabled = false;
    const layer = canvasOf(width, height, (data) => paint(data, values, (value) => colours.get(value) ?? null, alpha));
    context.drawImage(layer, 0, 0, wide, high);
    context.imageSmoothingEnabled = state.smooth;
    if (!state.outline) return;
    context.lineWidth = Math.max(1.5 * (window.devicePixelRatio || 1), wide / width / 4);
    context.lineCap = "square";
    for (const [value, lines] of outlines(values, width, height, new Set(colours.keys()))) {
      context.strokeStyle = `rgb(${colours.get(value).join(",")})`;
      context.beginPath();
      for (let i = 0; i < lines.length; i += 4) {
        context.moveTo((lines[i] / width) * wide, (lines[i + 1] / height) * high);
        context.lineTo((lines[i + 2] / width) * wide, (lines[i + 3] / height) * high);
      }
      context.stroke();
    }
  }
}

function entry(colour, text, tag = "span") {
  const item = document.createElement(tag);
  item.className = "entry";
  const swatch = document.createElement("span");
  swatch.className = "swatch";
  swatch.style.background = `rgb(${colour.join(",")})`;
  item.append(swatch, text);
  return item;
}

const viewers = new WeakMap();
const remembered = new Map();

export default function mount({ parentElement, data }) {
  if (!viewers.has(parentElement)) viewers.set(parentElement, new Viewer(parentElement));
  const viewer = viewers.get(parentElement);
  if (data instanceof Uint8Array) viewer.show(data);
}

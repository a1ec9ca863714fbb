// Brings the book's interactive figures to life. Each is <div class="explore" data-explore="KIND" data-figure="JSON">
// around a still picture (thesis_lib/pages/explore.py), which stays where this script does not run. No library is used.
// Pictures are in the JSON as data: addresses, but for photographs to choose from: each is a script in explore/, which
// calls explorePicture, because a page that was opened from a disk may load scripts and nothing else.
(() => {
  "use strict";

  const HERE = document.currentScript.src;
  const asked = {}; // name of a photograph: the promise of its data
  const answer = {}; // name of a photograph: what keeps that promise

  /** A photograph's data, decoded: loaded when it is first asked for. */
  function photograph(name) {
    asked[name] ||= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      answer[name] = resolve;
      script.src = new URL(`explore/${name}.js`, HERE);
      script.addEventListener("error", () => reject(new Error(`${script.src} is missing`)));
      document.head.append(script);
    }).then(async (data) => {
      const methods = Object.entries(data.methods);
      [data.picture, data.blurred] = await Promise.all([pixels(data.picture), pixels(data.blurred)]);
      await Promise.all(methods.map(async ([, method]) => {
        [method.ranks] = await maps(method.ranks);
        method.map = method.ranks.map((rank) => method.steps[rank]);
      }));
      return data;
    });
    return asked[name];
  }
  window.explorePicture = (name, data) => answer[name](data);

  // Small tools

  /** An element with attributes (functions become listeners) and children. */
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === "function") element.addEventListener(name, value);
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  function svg(tag, attributes = {}, text = "") {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    return element;
  }

  /** A picture's pixels as ImageData. */
  async function pixels(source) {
    const image = new Image();
    image.src = source;
    await image.decode();
    const context = make("canvas", { width: image.width, height: image.height }).getContext("2d");
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, image.width, image.height);
  }

  /** The values of a grey picture, 0 to 255, cut into maps of `height` rows (default: one map). */
  async function maps(source, height) {
    const { data, width, height: all } = await pixels(source);
    const values = data.filter((_, i) => i % 4 === 0);
    const size = width * (height || all);
    return Array.from({ length: values.length / size }, (_, k) => values.subarray(k * size, (k + 1) * size));
  }

  const percent = (x, digits = 1) => `${(100 * x).toFixed(digits)} %`;
  const signed = (x, digits = 2) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(digits);
  const clamp = (x, low, high) => Math.min(high, Math.max(low, x));

  /** Colours of values 0 to 255, from the figure's JSON. */
  const palette = (hex) => Uint8Array.from(hex.match(/../g), (pair) => parseInt(pair, 16));

  /** A square picture with a title above it. `draw(colour)`: colour(i) gives pixel i as [r, g, b]. */
  function panel(title, size, label) {
    const canvas = make("canvas", { width: size, height: size, role: "img", "aria-label": label });
    const heading = make("div", { class: "explore-title" }, title);
    const context = canvas.getContext("2d");
    return {
      canvas, context, heading,
      element: make("div", { class: "explore-panel" }, heading, canvas),
      draw(colour, side = size) {
        if (canvas.width !== side) canvas.width = canvas.height = side;
        const image = context.createImageData(side, side);
        for (let i = 0; i < side * side; i++) image.data.set([...colour(i), 255], 4 * i);
        context.putImageData(image, 0, 0);
      },
    };
  }

  const rgb = (image, i) => image.data.subarray(4 * i, 4 * i + 3);
  const grey = (value) => [value, value, value];
  const heat = (colours, value) => colours.subarray(3 * value, 3 * value + 3);
  const mix = (a, b, share) => [0, 1, 2].map((k) => a[k] * (1 - share) + b[k] * share);

  /** Numbers stretched so that the largest is 255, negative ones cut off: a map as it is shown. */
  function stretched(sum) {
    let top = 0;
    for (const x of sum) if (x > top) top = x;
    return Uint8Array.from(sum, (x) => (top ? (255 * Math.max(0, x)) / top : 0));
  }

  /** A labelled slider over whole numbers, with buttons that step it. */
  function slider(label, count, value, changed) {
    const input = make("input", { type: "range", min: 0, max: count - 1, value, step: 1, input: () => changed(+input.value) });
    const go = (to) => {
      input.value = clamp(to, 0, count - 1);
      changed(+input.value);
    };
    const button = (text, name, by) =>
      make("button", { type: "button", "aria-label": `${label}: ${name}`, click: () => go(+input.value + by) }, text);
    const box = make("div", { class: "explore-control explore-slider" },
      make("label", {}, label + " ", input), button("‹", "back", -1), button("›", "forward", 1));
    return { box, input, go };
  }

  /** A labelled list to choose from. */
  function choice(label, options, changed) {
    const select = make("select", { change: () => changed(select.value) },
      ...Object.entries(options).map(([value, text]) => make("option", { value }, text)));
    return { box: make("div", { class: "explore-control" }, make("label", {}, label + " ", select)), select };
  }

  const titles = (data) => Object.fromEntries(Object.entries(data.methods).map(([key, { name }]) => [key, name]));

  /** The list of photographs. `changed(data)` once the chosen one is there; only the last choice counts. */
  function choosePicture(data, say, changed) {
    let last = data.start;
    const list = choice("Photograph", data.pictures, async (name) => {
      last = name;
      list.select.setAttribute("aria-busy", "true");
      const found = await photograph(name).catch((error) => error);
      if (name !== last) return;
      list.select.removeAttribute("aria-busy");
      if (found instanceof Error) say(found.message);
      else changed(found);
    });
    list.select.value = data.start;
    return list;
  }

  /** What the pointer does on a picture or a plot: `moved(x, y)`, each from 0 to 1. */
  function follow(element, moved, hover = false) {
    const tell = (event) => {
      const box = element.getBoundingClientRect();
      moved(clamp((event.clientX - box.left) / box.width, 0, 1), clamp((event.clientY - box.top) / box.height, 0, 1));
    };
    element.addEventListener("pointerdown", tell);
    element.addEventListener("pointermove", (event) => (hover || event.buttons) && tell(event));
  }

  /** Arrow keys on a picture: `moved(right, down)`, in steps. */
  function arrows(canvas, moved) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application"); // arrow keys come here, and not to a screen reader
    canvas.addEventListener("keydown", (event) => {
      if (!steps[event.key]) return;
      event.preventDefault();
      moved(...steps[event.key]);
    });
  }

  const panels = (...list) => make("div", { class: "explore-panels" }, ...list);
  const controls = (...list) => make("div", { class: "explore-controls" }, ...list);

  // The figures. Each gets its data and the place for the text of its values, and returns its elements.

  const figures = {
    /** Insertion and deletion, step by step. Ranks count in steps: at point t, those below t are replaced. */
    async curve(data, say) {
      const keys = Object.keys(data.methods);
      let [shown, method, way, t] = [await photograph(data.start), keys[0], "insertion", data.point];
      const seen = panel("what the network sees", shown.picture.width, "The picture, partly replaced by its blurred copy");

      const [width, height, left, top] = [320, 224, 34, 8];
      const points = shown.fractions.length;
      const x = (t) => left + (width - left - 8) * shown.fractions[t];
      const y = (p) => top + (height - top - 34) * (1 - p);
      const plot = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Probability of the class over the share of pixels" });
      for (const p of [0, 0.5, 1]) {
        plot.append(svg("line", { x1: left, x2: width - 8, y1: y(p), y2: y(p), class: "grid" }));
        plot.append(svg("text", { x: left - 4, y: y(p) + 4, "text-anchor": "end" }, p));
      }
      plot.append(svg("text", { x: left, y: height - 18 }, "0"), svg("text", { x: width - 8, y: height - 18, "text-anchor": "end" }, "100 %"));
      plot.append(svg("text", { x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, "share of the pixels, strongest first"));
      const lines = {};
      for (const key of keys) plot.append((lines[key] = svg("polyline", { fill: "none", stroke: data.methods[key].colour })));
      const dot = svg("circle", { r: 5 });
      plot.append(dot);

      function update() {
        const chosen = shown.methods[method];
        for (const [key, line] of Object.entries(lines)) {
          line.setAttribute("points", shown.methods[key][way].map((p, i) => `${x(i)},${y(p)}`).join(" "));
          line.setAttribute("class", key === method ? "chosen" : "other");
        }
        plot.append(lines[method], dot); // on top of the others
        dot.setAttribute("cx", x(t));
        dot.setAttribute("cy", y(chosen[way][t]));
        dot.setAttribute("fill", data.methods[method].colour);
        const inserting = way === "insertion";
        seen.draw((i) => rgb(chosen.ranks[i] < t === inserting ? shown.picture : shown.blurred, i));
        time.input.setAttribute("aria-valuetext", `${percent(shown.fractions[t])} of the pixels`);
        say(`${data.methods[method].name}, ${percent(shown.fractions[t])} of the pixels ${inserting ? "inserted" : "deleted"}: ` +
          `probability of ${shown.category} ${chosen[way][t].toFixed(3)}. Area under this curve: ${percent(chosen[`${way}_auc`])}.`, shown);
      }
      const picture = choosePicture(data, say, (found) => { shown = found; update(); });
      const which = choice("Method", titles(data), (value) => { method = value; update(); });
      const direction = choice("Experiment", { insertion: "insertion", deletion: "deletion" }, (value) => { way = value; update(); });
      const time = slider("Pixels", points, 0, (value) => { t = value; update(); });
      follow(plot, (px) => time.go(Math.round(((px * width - left) / (width - left - 8)) * (points - 1))));
      time.go(t);
      return [controls(picture.box, which.box, direction.box, time.box), panels(seen.element, make("div", { class: "explore-panel explore-wide" },
        make("div", { class: "explore-title" }, "what it says"), plot))];
    },

    /** MSG-CAM's enlarged copies, one after the other. */
    async scales(data, say) {
      const colours = palette(data.colours);
      const picture = await pixels(data.picture);
      const [features, means] = [[], []];
      for (const scale of data.scales) {
        features.push((await maps(scale.features))[0]);
        means.push((await maps(scale.mean))[0]);
      }
      const side = Math.sqrt(means[0].length);
      const one = panel("", 14, "Weighted sum of the feature maps at this size");
      const all = panel("", side, "Mean over the sizes kept so far");
      const over = panel("the same over the picture", picture.width, "Mean over the sizes kept so far, over the picture");
      one.canvas.classList.add("pixelated");
      function update(t) {
        const { size, values, says, p, own, kept, count } = data.scales[t];
        one.draw((i) => heat(colours, features[t][i]), values);
        one.element.classList.toggle("dropped", !kept);
        one.heading.textContent = `${values} × ${values} values`;
        all.draw((i) => heat(colours, means[t][i]));
        all.heading.textContent = `mean of ${count} size${count > 1 ? "s" : ""}`;
        const place = (i) => Math.floor((Math.floor(i / picture.width) * side) / picture.width) * side + Math.floor(((i % picture.width) * side) / picture.width);
        over.draw((i) => mix(rgb(picture, i), heat(colours, means[t][place(i)]), 0.5));
        scale.input.setAttribute("aria-valuetext", `${size} pixels`);
        say(`Copy ${t + 1} of ${data.scales.length}, ${size} × ${size} pixels. The network says ${says}, ${p.toFixed(2)}` +
          (kept ? ": kept." : ` (${data.category}: ${own.toFixed(2)}): dropped, the mean stays as it was.`));
      }
      const scale = slider("Copy", data.scales.length, 0, update);
      update(0);
      return [controls(scale.box), panels(one.element, all.element, over.element)];
    },

    /** MSG-CAM's groups: mask, perturbed picture, weight, running sum. */
    async groups(data, say) {
      const colours = palette(data.colours);
      const [picture, blurred, masks] = await Promise.all([pixels(data.picture), pixels(data.blurred), maps(data.masks, data.side)]);
      const side = picture.width;
      const place = (i) => Math.floor((Math.floor(i / side) * data.side) / side) * data.side + Math.floor(((i % side) * data.side) / side);
      const places = Uint32Array.from({ length: side * side }, (_, i) => place(i));
      const orders = {
        index: data.alpha.map((_, r) => r),
        weight: data.alpha.map((_, r) => r).sort((a, b) => (data.peak[b] > 0) - (data.peak[a] > 0) || data.alpha[b] - data.alpha[a]),
      };
      const mask = panel("mask", data.side, "The mask of this group");
      const seen = panel("picture through it", side, "The picture where the mask is, blurred elsewhere");
      const sum = panel("", data.side, "Weighted sum of the masks so far");

      const [width, height] = [320, 120];
      const [low, high] = [Math.min(0, ...data.alpha), Math.max(0, ...data.alpha)];
      const y = (a) => 8 + ((height - 16) * (high - a)) / (high - low || 1);
      const step = width / data.alpha.length;
      const bars = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Weights of all groups, in the chosen order" });
      const drawn = data.alpha.map(() => bars.appendChild(svg("rect", { width: step - 2 })));
      bars.append(svg("line", { x1: 0, x2: width, y1: y(0), y2: y(0), class: "axis" }));
      bars.append(svg("text", { x: 2, y: y(high) + 8 }, `${signed(high, 1)} at most`));

      let [order, n] = [orders.index, 0];
      function update() {
        const total = new Float32Array(data.side * data.side);
        for (const r of order.slice(0, n + 1)) {
          const weight = data.alpha[r] * data.peak[r];
          if (weight) masks[r].forEach((value, i) => (total[i] += weight * value));
        }
        const r = order[n];
        mask.draw((i) => grey(masks[r][i]));
        seen.draw((i) => mix(rgb(blurred, i), rgb(picture, i), masks[r][places[i]] / 255));
        const shown = stretched(total);
        sum.draw((i) => heat(colours, shown[i]));
        sum.heading.textContent = `sum of ${n + 1}`;
        drawn.forEach((bar, k) => {
          const a = data.alpha[order[k]];
          for (const [name, value] of Object.entries({ x: k * step + 1, y: Math.min(y(0), y(a)), height: Math.abs(y(a) - y(0)) }))
            bar.setAttribute(name, value);
          bar.setAttribute("class", k === n ? "now" : k < n ? "past" : "ahead");
        });
        group.input.setAttribute("aria-valuetext", `group ${r}`);
        say(`Step ${n + 1} of ${order.length}, group ${r}: ` + (data.peak[r]
          ? `uncovered by this mask, the logit of ${data.category} changes by ${signed(data.alpha[r])}, which is its weight.`
          : "nothing positive is left in it, so it is skipped."));
      }
      const sorted = choice("Order", { index: "as the channels come", weight: "largest weight first" }, (value) => { order = orders[value]; update(); });
      const group = slider("Group", data.alpha.length, 0, (value) => { n = value; update(); });
      follow(bars, (px) => group.go(Math.floor(px * data.alpha.length)));
      update();
      return [controls(sorted.box, group.box), panels(mask.element, seen.element, sum.element),
        make("div", { class: "explore-plot" }, make("div", { class: "explore-title" }, "weights"), bars)];
    },

    /** The window enhancer: a window, its map, and the sum. */
    async window(data, say) {
      const colours = palette(data.colours);
      const [picture, windows, [whole], [finished]] = await Promise.all([
        pixels(data.picture), maps(data.maps, data.window), maps(data.whole), maps(data.finished)]);
      const [side, w, columns] = [picture.width, data.window, data.columns];
      const rows = data.corners.length / columns;
      const place = panel("the window", side, "The picture with the window. Arrow keys move it");
      const view = panel("enlarged, with its map", w, "What lies in the window, with its saliency map over it");
      const sum = panel("", side, "Sum of the windows' maps");
      let [k, what] = [0, "far"];

      /** Equation 4-8 over the first n windows. */
      function fused(n) {
        const total = new Float32Array(side * side);
        data.corners.slice(0, n).forEach(([top, left], k) => {
          for (let j = 0; j < w * w; j++) {
            const i = (top + Math.floor(j / w)) * side + left + (j % w);
            total[i] += data.alpha[k] * windows[k][j] + whole[i];
          }
        });
        return total;
      }
      const everything = stretched(fused(data.corners.length));
      function update() {
        const [top, left] = data.corners[k];
        place.draw((i) => rgb(picture, i));
        place.context.lineWidth = 3;
        for (const [style, offset] of [["#000", 0], ["#fff", 3]]) {
          place.context.strokeStyle = style;
          place.context.strokeRect(left + 1.5 + offset, top + 1.5 + offset, w - 3 - 2 * offset, w - 3 - 2 * offset);
        }
        view.draw((j) => mix(rgb(picture, (top + Math.floor(j / w)) * side + left + (j % w)), heat(colours, windows[k][j]), 0.5));
        const shown = what === "done" ? finished : what === "all" ? everything : stretched(fused(k + 1));
        sum.draw((i) => heat(colours, shown[i]));
        sum.heading.textContent = { far: `sum of ${k + 1} of ${data.corners.length}`, all: `sum of all ${data.corners.length}`, done: "low-passed, stretched" }[what];
        const text = `Window ${k + 1} of ${data.corners.length}, row ${Math.floor(k / columns) + 1}, column ${(k % columns) + 1}`;
        number.input.setAttribute("aria-valuetext", text);
        say(`${text}: the network sees ${data.category} in it with probability ${data.alpha[k].toFixed(3)}, which is its map's weight.`);
      }
      const number = slider("Window", data.corners.length, 0, (value) => { k = value; update(); });
      const shown = choice("Map", { far: "sum up to this window", all: "sum of all windows", done: "finished map" }, (value) => { what = value; update(); });
      const goTo = (row, column) => number.go(clamp(row, 0, rows - 1) * columns + clamp(column, 0, columns - 1));
      arrows(place.canvas, (right, down) => goTo(Math.floor(k / columns) + down, (k % columns) + right));
      const stride = (side - w) / Math.max(1, columns - 1);
      follow(place.canvas, (x, y) => goTo(Math.round((y * side - w / 2) / stride), Math.round((x * side - w / 2) / stride)));
      number.go(data.start);
      return [controls(number.box, shown.box), panels(place.element, view.element, sum.element)];
    },

    /** One picture, many methods, and the value under the pointer. */
    async methods(data, say) {
      const colours = palette(data.colours);
      let [shown, method, weight] = [await photograph(data.start), Object.keys(data.methods)[0], 5];
      const side = shown.picture.width;
      const over = panel("the map over the picture", side, "The picture with the map over it. Arrow keys move the point that is read");
      const map = panel("the map", side, "The map of the chosen method");
      const summit = () => shown.methods[method].map.indexOf(shown.methods[method].map.reduce((a, b) => Math.max(a, b)));
      let [column, row] = [summit() % side, Math.floor(summit() / side)];
      function cross(context, x, y) {
        for (const [style, width] of [["#000", 5], ["#fff", 2]]) {
          context.strokeStyle = style;
          context.lineWidth = width;
          context.beginPath();
          for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
            context.moveTo(x + 0.5 + 4 * dx, y + 0.5 + 4 * dy);
            context.lineTo(x + 0.5 + 12 * dx, y + 0.5 + 12 * dy);
          }
          context.stroke();
        }
      }
      function update() {
        const { map: values, overall } = shown.methods[method];
        over.draw((i) => mix(rgb(shown.picture, i), heat(colours, values[i]), weight / 10));
        map.draw((i) => heat(colours, values[i]));
        for (const { context } of [over, map]) cross(context, column, row);
        const value = values[row * side + column];
        const below = values.reduce((n, other) => n + (other < value), 0) / values.length;
        strength.input.setAttribute("aria-valuetext", `${10 * weight} %`);
        say(`${data.methods[method].name} at row ${row}, column ${column}: ${(value / 255).toFixed(2)}, more than at ${percent(Math.floor(1000 * below) / 1000)} of the pixels. ` +
          `Insertion minus deletion on this picture: ${percent(overall)}.`, shown);
      }
      const picture = choosePicture(data, say, (found) => { shown = found; update(); });
      const which = choice("Method", titles(data), (value) => { method = value; update(); });
      const strength = slider("Map's strength", 11, weight, (value) => { weight = value; update(); });
      for (const { canvas } of [over, map]) {
        follow(canvas, (x, y) => {
          [column, row] = [x, y].map((part) => Math.min(side - 1, Math.floor(part * side)));
          update();
        }, true);
      }
      arrows(over.canvas, (right, down) => {
        [column, row] = [column + 4 * right, row + 4 * down].map((place) => clamp(place, 0, side - 1));
        update();
      });
      update();
      return [controls(picture.box, which.box, strength.box), panels(over.element, map.element)];
    },
  };

  async function enliven(root) {
    const still = root.querySelector("img");
    const text = make("output", { class: "explore-values" }); // read out when it changes
    const credit = make("div", { class: "explore-credit" });
    const say = (words, shown) => {
      text.textContent = words;
      if (shown) credit.textContent = `Photograph by ${shown.author}, CC BY 2.0; the network says ${shown.category} (${shown.probability}), its label is ${shown.truth}.`;
    };
    const box = make("div", { class: "explore-live", role: "group", "aria-label": `Interactive figure: ${root.dataset.explore}` });
    const parts = await figures[root.dataset.explore](JSON.parse(root.dataset.figure), say);
    box.append(...parts, text, credit);
    still.replaceWith(box);
    root.dataset.ready = "yes";
  }

  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".explore").forEach(enliven));
})();

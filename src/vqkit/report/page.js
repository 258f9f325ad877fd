"use strict";
// Everything here adds to a page that can be read without it.
(() => {
  document.documentElement.classList.add("scripted");
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const tip = document.querySelector(".tip");

  // ---------------------------------------------------------------- hints

  function showTip(text, x, y) {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = Math.min(Math.max(8, x + 14), innerWidth - box.width - 8);
    const above = y - box.height - 12;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${above < 8 ? Math.min(y + 18, innerHeight - box.height - 8) : above}px`;
  }
  const hideTip = () => { tip.hidden = true; };

  for (const point of all("[data-tip]")) {
    const show = () => {
      const box = point.getBoundingClientRect();
      showTip(point.dataset.tip, box.right - 14, box.top);
    };
    point.addEventListener("pointerenter", show);
    point.addEventListener("focus", show);
    // A finger leaves as soon as it is lifted; its hint stays until the next touch elsewhere.
    point.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hideTip());
    point.addEventListener("blur", hideTip);
  }
  document.addEventListener("pointerdown", (event) => {
    if (!event.target.closest("[data-tip], svg.curves")) hideTip();
  });

  // ---------------------------------------------------------------- tables

  function sortBy(table, column, descending) {
    const body = table.tBodies[0];
    const value = (row) => row.cells[column]?.dataset.v;
    const known = [...body.rows].filter((row) => value(row) !== undefined);
    const unknown = [...body.rows].filter((row) => value(row) === undefined);
    known.sort((a, b) => {
      const [left, right] = [value(a), value(b)];
      const numbers = left !== "" && right !== "" && !isNaN(left) && !isNaN(right);
      const order = numbers ? left - right : left.localeCompare(right, "en", { numeric: true });
      return descending ? -order : order;
    });
    body.append(...known, ...unknown);
    all("thead th", table).forEach((head, i) => {
      if (i === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  }

  for (const table of all("table.sortable")) {
    all("thead th", table).forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        // Numbers begin with the largest, names with A.
        const first = head.classList.contains("number");
        sortBy(table, column, before === null ? first : before === "ascending");
      });
    });
  }

  // ---------------------------------------------------------------- curves

  const written = (value) =>
    Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : `${+value.toPrecision(4)}`;

  function nearest(points, x) {
    let low = 0;
    let high = points.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle][0] <= x) low = middle;
      else high = middle;
    }
    return Math.abs(points[low][0] - x) <= Math.abs(points[high][0] - x) ? points[low] : points[high];
  }

  for (const drawing of all("svg.curves")) {
    const facts = JSON.parse(drawing.dataset.curves);
    const [start, end, low, high] = facts.x;
    const line = drawing.querySelector(".crosshair");
    let at = high;
    const move = (x, clientX, clientY) => {
      at = Math.min(Math.max(x, low), high);
      const found = facts.curves.map(([, name, points]) => [name, nearest(points, at)]);
      const close = found.reduce((a, b) => (Math.abs(b[1][0] - at) < Math.abs(a[1][0] - at) ? b : a));
      const place = start + ((close[1][0] - low) / (high - low)) * (end - start);
      line.setAttribute("x1", place);
      line.setAttribute("x2", place);
      line.style.visibility = "visible";
      const rows = found.map(([name, point]) => `${name}: ${written(point[1])}`);
      showTip(`${facts.label} ${written(close[1][0])}\n${rows.join("\n")}`, clientX, clientY);
    };
    const leave = () => {
      line.style.visibility = "hidden";
      hideTip();
    };
    const pointed = (event) => {
      const box = drawing.getBoundingClientRect();
      const unit = ((event.clientX - box.left) / box.width) * drawing.viewBox.baseVal.width;
      move(low + ((unit - start) / (end - start)) * (high - low), event.clientX, event.clientY);
    };
    drawing.addEventListener("pointermove", pointed);
    drawing.addEventListener("pointerdown", pointed);
    drawing.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && leave());
    drawing.addEventListener("blur", leave);
    drawing.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by) return;
      event.preventDefault();
      const box = drawing.getBoundingClientRect();
      move(at + (by * (high - low)) / 40, box.left + box.width / 2, box.top + 20);
    });
  }

  // ---------------------------------------------------------------- pictures

  const compare = document.querySelector(".compare");
  if (!compare) return;
  const stage = compare.querySelector(".stage");
  const range = compare.querySelector(".cut");
  const said = compare.querySelector(".said");
  const strips = all(".strip");
  const thumbs = all(".thumbs button");
  const sides = { left: 0, right: 1 };
  let strip = strips[0];

  function draw() {
    const words = [];
    for (const [side, version] of Object.entries(sides)) {
      const source = strip.querySelector(`img[data-version="${version}"]`);
      const image = stage.querySelector(`.${side}`);
      image.src = source.src;
      image.alt = `${side} of the border: ${source.alt}`;
      const name = compare.querySelector(`[data-side="${side}"]`).selectedOptions[0].textContent;
      words.push(`${side}: ${name}${source.dataset.said ? `, ${source.dataset.said}` : ""}`);
      stage.style.aspectRatio = `${source.getAttribute("width")} / ${source.getAttribute("height")}`;
    }
    compare.classList.toggle("small", strip.classList.contains("small"));
    said.textContent = `${strip.dataset.name} · ${words.join(" · ")}`;
  }
  function choose(number) {
    strip = strips[number];
    strips.forEach((other) => other.classList.toggle("chosen", other === strip));
    thumbs.forEach((button, i) => button.setAttribute("aria-pressed", String(i === number)));
    draw();
  }
  function cut(percent) {
    range.value = String(percent);
    stage.style.setProperty("--cut", `${range.value}%`);
  }

  thumbs.forEach((button, i) => button.addEventListener("click", () => choose(i)));
  for (const select of all("select", compare)) {
    select.addEventListener("change", () => {
      sides[select.dataset.side] = Number(select.value);
      draw();
    });
    // A browser that restores a form after a reload restores it behind our back.
    select.value = String(sides[select.dataset.side]);
  }
  range.addEventListener("input", () => cut(range.value));
  const drag = (event) => {
    const box = stage.getBoundingClientRect();
    cut((100 * (event.clientX - box.left)) / box.width);
  };
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    drag(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) drag(event);
  });
  compare.hidden = false;
  cut(50);
  choose(0);
})();

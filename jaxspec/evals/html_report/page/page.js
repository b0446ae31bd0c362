
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Tables: a button in every head of a column. Cells without a figure come last.
  const order = new Intl.Collator(undefined, { numeric: true });

  function compared(first, second, isFigure, sign) {
    if (!isFigure) return sign * order.compare(first.textContent, second.textContent);
    const [a, b] = [first, second].map((cell) => cell.dataset.value);
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    return sign * (Number(a) - Number(b));
  }

  function sortBy(table, head) {
    const column = head.cellIndex;
    const isFigure = head.classList.contains("figure");
    // The largest figure first, and names from A to Z; then the other way round.
    const before = head.getAttribute("aria-sort");
    const wanted = isFigure ? "descending" : "ascending";
    const other = isFigure ? "ascending" : "descending";
    const direction = before === wanted ? other : wanted;
    for (const each of all("thead th", table)) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const body = table.tBodies[0];
    const rows = [...body.rows];
    rows.sort((a, b) => compared(a.cells[column], b.cells[column], isFigure, sign));
    body.append(...rows);
  }

  for (const table of all("table.sortable")) {
    for (const head of all("thead th", table)) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      button.addEventListener("click", () => sortBy(table, head));
      head.replaceChildren(button);
    }
  }

  // Answers: one round is the current one; later rounds are hidden.
  function makeSteps(trace) {
    const steps = all(".step", trace);
    const slider = trace.querySelector("input");
    const last = steps.length - 1;
    let current = last;

    function show(wanted) {
      current = Math.min(last, Math.max(0, wanted));
      steps.forEach((step, number) => {
        step.classList.toggle("later", number > current);
        step.classList.toggle("current", number === current);
      });
      const numbers = steps[current].dataset;
      const round = current ? `${current} of ${last}` : "prefill";
      for (const place of all("[data-shows]", trace)) {
        const name = place.dataset.shows;
        place.textContent = name === "round" ? round : numbers[name];
      }
      slider.value = current;
      slider.setAttribute("aria-valuetext", `round ${round}`);
      for (const button of all("button", trace)) {
        const isBack = ["first", "previous"].includes(button.dataset.to);
        // Not "disabled": a button that has the focus would take no keys any more.
        button.setAttribute("aria-disabled", current === (isBack ? 0 : last));
      }
    }

    const moves = {
      first: () => 0,
      previous: () => current - 1,
      next: () => current + 1,
      last: () => last,
    };
    const keys = { Home: "first", ArrowLeft: "previous", ArrowRight: "next", End: "last" };
    for (const button of all("button", trace)) {
      button.addEventListener("click", () => show(moves[button.dataset.to]()));
    }
    slider.addEventListener("input", () => show(Number(slider.value)));
    trace.addEventListener("keydown", (event) => {
      const move = keys[event.key];
      if (!move || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      show(moves[move]());
    });
    show(last);
  }

  for (const trace of all(".trace")) makeSteps(trace);
  for (const choice of all(".rounds select")) {
    const part = choice.closest(".rounds");
    const traces = all(".trace", part);
    const choose = () => traces.forEach((trace, number) => {
      trace.hidden = number !== Number(choice.value);
    });
    choice.addEventListener("change", choose);
    choose();
  }
  document.documentElement.classList.add("js");
})();

// The reader's switches: code shown or hidden, long tables folded, what scrolls within reach of keys.
(() => {
  const root = document.documentElement;
  const all = (query, within = document) => [...within.querySelectorAll(query)];
  const memory = {
    get: () => { try { return localStorage.getItem("code") || ""; } catch { return ""; } },
    set: how => { try { localStorage.setItem("code", how); } catch { /* a private window */ } },
  };
  const button = (text, press) => {
    const made = Object.assign(document.createElement("button"), { type: "button", textContent: text });
    made.addEventListener("click", press);
    return made;
  };

  // "shown", "hidden", or "" for as the chapter folds it
  function code(how, switches) {
    root.dataset.code = how;
    all("details.hide").forEach(fold => { fold.open = how === "shown"; });
    switches.forEach(b => b.setAttribute("aria-pressed", b.dataset.how === how));
  }

  function codeSwitch() {
    const place = document.querySelector("article h1");
    if (!place || !document.querySelector("div.cell_input")) return;
    const bar = Object.assign(document.createElement("div"), { className: "code-switch" });
    bar.setAttribute("role", "group");
    bar.setAttribute("aria-label", "Code on this page");
    const switches = [["shown", "Show all code"], ["hidden", "Hide code"]].map(([how, text]) => {
      const made = button(text, () => {
        const next = root.dataset.code === how ? "" : how;
        memory.set(next);
        code(next, switches);
      });
      made.dataset.how = how;
      return made;
    });
    bar.append(...switches);
    place.after(bar);
    code(memory.get(), switches);
  }

  function foldTables(most = 12, kept = 6) {
    for (const table of all(".output table")) {
      const rows = all("tr", table).filter(row => row.querySelector("td"));
      if (rows.length <= most) continue;
      const show = on => {
        rows.slice(kept).forEach(row => { row.hidden = !on; });
        more.setAttribute("aria-expanded", on);
        more.textContent = on ? `Show ${kept} rows` : `Show all ${rows.length} rows`;
      };
      const more = button("", () => show(more.getAttribute("aria-expanded") === "false"));
      more.className = "more";
      table.after(more);
      show(false);
    }
  }

  // The comma after a formula stays on its line.
  function holdPoints() {
    for (const math of all("span.math")) {
      const after = math.nextSibling;
      const points = after?.nodeType === Node.TEXT_NODE && after.data.match(/^[.,;:!?)\u2019\u201d]+/)?.[0];
      const held = document.createElement("span");
      held.className = "formula";
      math.replaceWith(held);
      held.append(math);
      if (points) {
        after.data = after.data.slice(points.length);
        held.append(points);
      }
    }
  }

  function withinReach() {
    for (const formula of all(".formula")) {  // one wider than its line gets a line, and scrolls
      formula.classList.remove("wide");
      const room = formula.closest("p, li, td, th, dd, figcaption")?.clientWidth;
      if (room && formula.offsetWidth > room) formula.classList.add("wide");
    }
    for (const box of all("pre, .output, .table-wrapper, div.math, .formula")) {
      const scrolls = box.scrollWidth > box.clientWidth + 1 && box.clientWidth > 0;
      if (scrolls === (box.dataset.scrolls === "yes")) continue;
      box.dataset.scrolls = scrolls ? "yes" : "";
      if (scrolls) box.tabIndex = 0; else box.removeAttribute("tabindex");
    }
  }

  function film() {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    all(".tape video").forEach(video => { if (!still) video.play().catch(() => {}); });
  }

  // The theme's two side bars are landmarks of one kind: names tell them apart.
  const bars = { ".sidebar-drawer": "Chapters", ".toc-drawer": "On this page" };
  for (const [query, name] of Object.entries(bars))
    all(query).forEach(bar => bar.setAttribute("aria-label", name));
  // A long signature is set as a list of definitions, which it is not.
  all("dt.sig dd, dt.sig dl").forEach(part => {
    const made = document.createElement("div");
    made.className = `sig-${part.localName}`;
    made.append(...part.childNodes);
    part.replaceWith(made);
  });
  // The empty corner of a table is no heading.
  all("th").filter(th => !th.textContent.trim()).forEach(th => {
    const corner = document.createElement("td");
    corner.className = th.className;
    th.replaceWith(corner);
  });
  if (!document.querySelector("h1"))
    document.querySelector("article")?.prepend(Object.assign(document.createElement("h1"), { textContent: "Search" }));
  codeSwitch();
  foldTables();
  film();
  withinReach();
  addEventListener("resize", withinReach);
  addEventListener("toggle", withinReach, true);
  if (window.MathJax && MathJax.startup) MathJax.startup.promise.then(holdPoints).then(withinReach);
})();

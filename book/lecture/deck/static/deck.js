// Keys of the decks, and slides that fit.
(() => {
  const LEAST = 24;
  const focused = (what) => document.activeElement?.closest?.(what);

  // A control keeps the keys that work it; a clicker's page keys always turn the slide.
  const free = (event) => {
    if (/^Page(Up|Down)$/.test(event.key)) return true;
    if (focused("input, select, textarea")) return false;
    return !(focused("button, a, summary") && /^( |Enter)$/.test(event.key));
  };
  const first = (event) => {
    if (event.key === "?" && !focused("input, textarea")) {  // on whichever key a keyboard has it
      event.stopImmediatePropagation();
      Reveal.toggleHelp();
    }
    if (/^(Page(Up|Down)|Escape)$/.test(event.key) && focused("input, button, summary")) {
      event.preventDefault();
      document.activeElement.blur();
    }
  };

  const size = (slide) => parseFloat(getComputedStyle(slide).fontSize);
  const over = (slide) =>
    slide.scrollHeight > slide.clientHeight + 1 || slide.scrollWidth > slide.clientWidth + 1;
  const fit = (slide) => {
    while (over(slide) && size(slide) > LEAST) slide.style.fontSize = `${size(slide) - 1}px`;
  };
  const slides = () => [...document.querySelectorAll(".slides section[data-kind]")];

  const printing = /print-pdf/i.test(location.search);
  const laid = printing && new Promise((done) => Reveal.on("pdf-ready", done));
  document.addEventListener("keydown", first, true);
  Reveal.on("ready", async () => {
    Reveal.configure({ keyboardCondition: free });
    Reveal.addKeyBinding({ keyCode: 67, key: "C", description: "Show or hide the code" }, () =>
      document.body.classList.toggle("with-code"));
    document.querySelectorAll(".page").forEach((page) => page.setAttribute("data-prevent-swipe", ""));
    await laid;
    await document.fonts.ready;
    await window.MathJax?.startup?.promise;
    await Promise.allSettled([...document.images].map((image) => image.decode()));
    slides().forEach(fit);
    if (!printing) Reveal.layout();
    document.body.dataset.fitted = "yes";
  });
})();

// The widget manager 1.0 still calls MathJax 2's queue; hand its requests to MathJax 3.
document.addEventListener("DOMContentLoaded", () => {
  if (!window.MathJax || MathJax.Hub) return;
  MathJax.Hub = {
    Config() {},
    Configured() {},
    Queue(job) {
      if (Array.isArray(job) && job[0] === "Typeset" && MathJax.typesetPromise)
        MathJax.typesetPromise([job[2]]);
    },
  };
});

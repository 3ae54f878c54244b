// A page on disk may not read its neighbours, so results there come without excerpts.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// What is too wide scrolls, formulas in a line too, and is reached by keyboard.
function fit() {
  for (const formula of document.querySelectorAll("span.math")) {
    formula.classList.remove("wide");
    const room = formula.parentElement.closest(":not(em, strong, a)").clientWidth;
    formula.classList.toggle("wide", formula.offsetWidth > room);
  }
  for (const box of document.querySelectorAll("pre, .table-wrapper, .math"))
    if (box.scrollWidth > box.clientWidth && box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
}
addEventListener("resize", fit);
addEventListener("load", () => {
  fit();
  window.MathJax?.startup.promise.then(fit);
});

// A page on disk may not read its neighbours, so results there come without excerpts.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// What scrolls sideways is reached and scrolled by keyboard too.
function reachable() {
  for (const box of document.querySelectorAll("pre, .table-wrapper, div.math"))
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
}
addEventListener("load", () => {
  reachable();
  window.MathJax?.startup.promise.then(reachable);
});
addEventListener("resize", reachable);

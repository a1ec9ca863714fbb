// Names and roles that the theme leaves out or gets wrong, for readers who hear the page (found by axe-core).
document.addEventListener("DOMContentLoaded", () => {
  // The arrows in the table of contents that fold a chapter.
  for (const arrow of document.querySelectorAll(".bd-sidebar-primary summary")) {
    const chapter = arrow.closest("li").querySelector("a").textContent.trim();
    arrow.setAttribute("aria-label", `Pages of ${chapter}`);
  }
  // Entries of the bibliography: their role, doc-biblioentry, is deprecated, and none that a list may hold.
  for (const entry of document.querySelectorAll('.citation-list > [role="doc-biblioentry"]')) entry.setAttribute("role", "listitem");
});

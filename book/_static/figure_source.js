// A figure that a cell computes gets a link to that cell's code, which mostly is folded away: above it, or, of a figure
// that opens the page, where it was computed.
document.addEventListener("DOMContentLoaded", () => {
  for (const figure of document.querySelectorAll(".cell figure[id]")) {
    const cell = figure.closest(".cell");
    const name = [...cell.classList].find((part) => part.startsWith("opening-"));
    const code = name ? document.querySelector(`.${name} .cell_input`) : cell.querySelector(".cell_input");
    const caption = figure.querySelector("figcaption p");
    if (!code || !caption) continue;
    code.id ||= `code-of-${figure.id}`;
    const link = document.createElement("a");
    link.className = "figure-source";
    link.href = `#${code.id}`;
    link.textContent = "How this figure was made";
    link.addEventListener("click", () => {
      const fold = code.closest("details");
      if (fold) fold.open = true; // before the browser scrolls there
    });
    caption.append(" ", link);
  }
});

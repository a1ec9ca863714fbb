// A figure that a cell computes gets a link to that cell's code, which mostly is folded away above it.
document.addEventListener("DOMContentLoaded", () => {
  for (const figure of document.querySelectorAll(".cell figure[id]")) {
    const code = figure.closest(".cell").querySelector(".cell_input");
    const caption = figure.querySelector("figcaption p");
    if (!code || !caption) continue;
    code.id = `code-of-${figure.id}`;
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

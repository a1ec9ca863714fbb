// A click on a figure's picture, or Enter on it, shows it as large as the window; another, or Escape, closes it.
document.addEventListener("DOMContentLoaded", () => {
  const pictures = document.querySelectorAll(".bd-article figure img");
  if (!pictures.length) return;
  const dialog = document.createElement("dialog");
  dialog.className = "enlarged";
  dialog.setAttribute("aria-label", "Enlarged figure; Escape closes it");
  dialog.addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "Escape") dialog.close(); // which the theme keeps to itself, for its search
  });
  document.body.append(dialog);
  for (const picture of pictures) {
    if (picture.closest("a")) continue; // it leads elsewhere
    const open = () => {
      const large = new Image();
      large.src = picture.src;
      large.alt = picture.alt;
      dialog.replaceChildren(large);
      dialog.showModal();
    };
    const button = document.createElement("button");
    button.className = "enlarge";
    button.type = "button";
    button.setAttribute("aria-label", "Enlarge this figure");
    button.textContent = "⤢";
    button.addEventListener("click", open);
    picture.addEventListener("click", open);
    picture.after(button);
  }
});

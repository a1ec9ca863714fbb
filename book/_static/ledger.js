// Filters for the ledger of claims. Without this script all rows are shown, which is the fallback.
document.addEventListener("DOMContentLoaded", () => {
  const tables = [...document.querySelectorAll("table.ledger")];
  if (!tables.length) return;
  const rows = tables.flatMap((table) => [...table.tBodies[0].rows]);

  const form = document.createElement("form");
  form.className = "ledger-filter";
  form.setAttribute("aria-label", "Filter the claims");
  const field = (label, control) => {
    const box = document.createElement("label");
    box.append(label, control);
    form.append(box);
    return control;
  };
  const choice = (label, key) => {
    const select = field(label, document.createElement("select"));
    const values = [...new Set(rows.map((row) => row.dataset[key]))].sort();
    select.append(new Option("all", ""), ...values.map((value) => new Option(value, value)));
    return select;
  };
  const chapter = choice("Chapter", "chapter");
  const status = choice("Status", "status");
  const words = field("Words", document.createElement("input"));
  words.type = "search";
  const count = document.createElement("output"); // an output is read aloud when it changes
  form.append(count);

  const apply = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden =
        (chapter.value && row.dataset.chapter !== chapter.value) ||
        (status.value && row.dataset.status !== status.value) ||
        !wanted.every((word) => text.includes(word));
    }
    for (const table of tables) {
      table.closest("section").hidden = [...table.tBodies[0].rows].every((row) => row.hidden);
    }
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} claims`;
  };
  const showLinked = () => { // a link to a row must reach it, whatever was filtered
    const row = rows.find((row) => "#" + row.id === location.hash);
    if (row && row.hidden) {
      form.reset();
      apply();
      row.scrollIntoView();
    }
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", showLinked);
  tables[0].closest("section").before(form);
  apply();
});

// The filter: a row stays while it is of every choice, and so does a picture, unless it does not say
// what it is of; a table stays while it has a row, a chapter while it has a table or a picture.
const form = document.querySelector("form");
const rows = [...document.querySelectorAll("tbody tr[data-attack]")];
const pictures = [...document.querySelectorAll("figure")];
const show = (element, shown) => element.classList.toggle("gone", !shown);

function filter() {
  const wanted = [...form.querySelectorAll("select")].filter(select => select.value);
  for (const one of [...rows, ...pictures])
    show(one, wanted.every(({value, dataset: {key}}) =>
      !(key in one.dataset) || one.dataset[key].split("|").includes(value)));
  for (const kind of [".block", ".pictures", "main > section"])
    for (const box of document.querySelectorAll(kind)) {
      const inside = [...box.querySelectorAll("tr[data-attack], figure")];
      show(box, !inside.length || inside.some(one => !one.closest(".gone")));
    }
  const left = rows.filter(row => !row.closest(".gone")).length;
  form.querySelector("output").textContent = wanted.length ? `${left} of ${rows.length}` : "";
}

form.hidden = false;
form.addEventListener("change", filter);
filter();               // a browser keeps choices over a reload

// A card closes to where it was opened from, and at Esc.
let opener = null;
document.addEventListener("click", event => {
  const link = event.target.closest("a");
  if (link?.closest("td")) opener = link.closest("tr").id;
  else if (link?.className === "close" && opener) link.href = `#${opener}`;
});
document.addEventListener("keydown", event => {
  if (event.key === "Escape") document.querySelector("article:target .close")?.click();
});

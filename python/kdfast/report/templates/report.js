// Tables that sort by any column and show the rows that a reader asks for; contents that follow the reader; folded
// parts that open for a link. Without scripts the tables are in the order of the report, and whole.
"use strict";

const MANY_ROWS = 2000;

// Shows the rows of a table that meet every condition. A condition has a name, under which another replaces it.
class TableFilter {
  constructor(table, controls) {
    this.table = table;
    this.rows = [...table.tBodies[0].rows]; // in the order of the report, whatever the table is sorted by
    this.kept = this.rows.map(() => true);
    this.conditions = new Map();
    this.input = controls.querySelector("input");
    this.output = controls.querySelector("output");
    this.texts = this.rows.map((row) => {
      const cells = [...row.cells].filter((cell) => cell.classList.contains("text"));
      return cells.map((cell) => cell.textContent).join(" ").toLowerCase();
    });
    this.select = this.choices();
    if (this.select) this.input.parentElement.after(this.select);
    this.input.addEventListener("input", () => this.search());
    this.select?.addEventListener("change", () => this.search());
    controls.hidden = false;
  }

  choices() {
    const column = [...this.table.tHead.rows[0].cells].findIndex((head) => head.dataset.choice);
    if (column < 0) return null;
    this.values = this.rows.map((row) => row.cells[column].textContent);
    const select = document.createElement("select");
    const label = this.table.tHead.rows[0].cells[column].dataset.choice;
    select.setAttribute("aria-label", label);
    select.append(new Option(label, ""), ...[...new Set(this.values)].map((value) => new Option(value, value)));
    return select;
  }

  search() {
    const words = this.input.value.toLowerCase().split(/\s+/);
    const choice = this.select?.value ?? "";
    this.where("controls", (row) => {
      if (choice !== "" && this.values[row] !== choice) return false;
      return words.every((word) => this.texts[row].includes(word));
    });
  }

  // test: of a row's number in the order of the report.
  where(name, test) {
    this.conditions.set(name, test);
    const tests = [...this.conditions.values()];
    this.kept = this.rows.map((_, row) => tests.every((each) => each(row)));
    clearTimeout(this.waiting);
    if (this.rows.length < MANY_ROWS) this.show();
    else this.waiting = setTimeout(() => this.show(), 200); // laying them out takes a second: not with every change
    const count = this.kept.filter(Boolean).length;
    this.output.textContent = count < this.rows.length ? `${count} of ${this.rows.length} rows` : "";
    this.table.dispatchEvent(new Event("filtered"));
  }

  show() {
    this.rows.forEach((row, i) => {
      if (row.hidden === this.kept[i]) row.hidden = !this.kept[i];
    });
  }
}

function sortable(table) {
  const said = document.getElementById(table.dataset.status);
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", head.dataset.sorted ?? "none");
    button.addEventListener("click", () => {
      const first = head.classList.contains("text") ? "ascending" : "descending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      for (const each of heads) each.setAttribute("aria-sort", each === head ? order : "none");
      const sign = order === "ascending" ? 1 : -1;
      const keyed = [...table.tBodies[0].rows].map((row) => [key(row.cells[column]), row]);
      keyed.sort(([a], [b]) => compare(a, b, sign));
      table.tBodies[0].append(...keyed.map(([, row]) => row));
      said.textContent = `Sorted by ${button.textContent}, ${order}`;
    });
  });
}

function key(cell) {
  const text = cell.dataset.value ?? cell.textContent.trim();
  return text === "" ? null : isNaN(text) ? text : Number(text);
}

function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null); // what is not known comes last
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), "en", { numeric: true });
}

const filters = new Map(); // by id of the table
for (const table of document.querySelectorAll("table.sortable")) {
  const controls = document.getElementById(`${table.id}-controls`);
  if (controls) filters.set(table.id, new TableFilter(table, controls));
  sortable(table);
}

// Opens what the address points into. The explorer's state follows a "?", and is no part of an id.
function reveal() {
  const id = location.hash.slice(1).split("?")[0];
  const target = id === "" ? null : document.getElementById(id);
  if (!target) return;
  for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
  target.scrollIntoView();
}
addEventListener("hashchange", reveal);
addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href^='#']");
  if (link && link.hash === location.hash) reveal(); // again: a part may have been folded since
});
reveal();

// Marks the part that is being read.
const contents = document.getElementById("contents");
if (contents) {
  const links = new Map([...contents.querySelectorAll("a")].map((link) => [link.hash.slice(1), link]));
  const parts = [...links.keys()].map((id) => document.getElementById(id)).filter((part) => part !== null);
  const mark = () => {
    const read = parts.findLast((part) => part.getBoundingClientRect().top < innerHeight / 3) ?? parts[0];
    for (const link of links.values()) link.removeAttribute("aria-current");
    const link = links.get(read.id);
    link.setAttribute("aria-current", "true");
    const row = contents.firstElementChild;
    const chapter = link.closest("#contents > ul > li");
    if (row.scrollWidth > row.clientWidth) row.scrollLeft = chapter.offsetLeft - 16;
  };
  let waiting = false;
  addEventListener("scroll", () => {
    if (!waiting) requestAnimationFrame(() => { waiting = false; mark(); });
    waiting = true;
  }, { passive: true });
  mark();
}

// The filter's state lives in the address, so that a link leads to a cell's cases and can be sent to somebody.
(() => {
  "use strict";
  const form = document.getElementById("filters");
  const shown = document.getElementById("shown");
  const cases = [...document.querySelectorAll("details.case")];
  const words = new Map(cases.map((entry) => [entry, entry.textContent.toLowerCase()]));
  const isWrong = (outcome) => outcome !== "correct" && outcome !== "-";

  const matches = (entry, want) => {
    const { suite, category, outcomes } = entry.dataset;
    const all = outcomes.split(" ");
    const mine = want.model ? [all[Number(want.model)] ?? "-"] : all;
    const first = all[0];
    if (want.suite && want.suite !== suite) return false;
    if (want.category && want.category !== category) return false;
    if (!mine.some((outcome) => (want.outcome ? outcome === want.outcome : isWrong(outcome)))) return false;
    if (want.change === "lost" && !(first === "correct" && all.slice(1).some(isWrong))) return false;
    if (want.change === "won" && !(isWrong(first) && all.slice(1).includes("correct"))) return false;
    return want.text.toLowerCase().split(/\s+/).every((word) => words.get(entry).includes(word));
  };

  const apply = () => {
    const want = Object.fromEntries(new FormData(form));
    let count = 0;
    for (const entry of cases) {
      entry.hidden = !matches(entry, want);
      count += entry.hidden ? 0 : 1;
    }
    shown.textContent = `${count} of ${cases.length} shown`;
  };

  const fromAddress = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const field of form.elements) field.value = given.get(field.name) ?? "";
    apply();
    if (location.hash.length > 1) form.scrollIntoView();
  };

  form.addEventListener("input", () => {
    const filled = [...new FormData(form)].filter(([, value]) => value !== "");
    history.replaceState(null, "", `#${new URLSearchParams(filled)}`);
    apply();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", fromAddress);
  fromAddress();
})();

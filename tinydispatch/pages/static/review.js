// The page of `review`: one line of the log at a time.
import { answerEditor, answerView, byId, confidenceMark, element, isCommand, number, parseJson } from "./calls.js";

const token = location.hash.slice(1);
let line = null;
let place = 0;
let chosen = "own";
let editor = null;
let isBusy = false;

async function call(path, body) {
  const headers = { "x-review-token": token, ...(body && { "content-type": "application/json" }) };
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Error("The review cannot be reached; is the command still running? What was decided is kept.");
  }
  const found = parseJson(await response.text());
  if (!response.ok) throw Object.assign(new Error(found.error.message), { problems: found.problems });
  return found;
}

// One thing at a time: a key that is held down decides one line, not ten.
async function guarded(work) {
  if (isBusy) return;
  isBusy = true;
  byId("trouble").hidden = true;
  try {
    await work();
  } catch (error) {
    byId("trouble").textContent = error.message;
    byId("trouble").hidden = false;
  } finally {
    isBusy = false;
  }
}

const order = () => byId("order").value;

async function show(query) {
  const found = await call(`/api/line?order=${order()}&${query}`);
  line = found.line;
  place = number(found.place);
  tell(found);
  closeForm();
  byId("line").hidden = !line;
  byId("nothing").hidden = Boolean(line);
  if (!line) {
    byId("undo-last").hidden = found.decided === 0;
    return;
  }
  chosen = line.chosen;
  const facts = [line.where, line.time, line.model, line.reference_date && `today was ${line.reference_date}`, line.tool_error && "the call failed"];
  byId("facts").replaceChildren(`confidence `, line.confidence === null ? "unknown" : confidenceMark(line.confidence), ` · ${facts.filter(Boolean).join(" · ")} `,
    ...line.orders.filter((name) => name !== "confidence").map((name) => element("span", { className: "tag" }, name.replace(/s$/, ""))));
  byId("messages").replaceChildren(...line.messages.map(({ role, answer }) =>
    element("div", { className: "message" }, element("div", { className: "who" }, role), answerView(answer))));
  byId("line-problem").textContent = line.problem ?? "";
  byId("line-problem").hidden = !line.problem;
  byId("choose").hidden = line.answers.length < 2;
  drawAnswers();
  window.scrollTo(0, 0);
  byId("answers-title").focus({ preventScroll: true });
}

function tell(state) {
  byId("count").textContent = `${number(state.left[order()])} left, ${number(state.decided)} decided`;
  const { count, first } = state.unreadable;
  byId("unreadable").hidden = !number(count);
  byId("unreadable").textContent = `${number(count)} lines cannot be read and are not shown: ${first.join("; ")}${number(count) > first.length ? "; …" : ""}`;
}

function drawAnswers() {
  byId("answers").replaceChildren(...line.answers.map((each, index) => {
    const isChosen = each.name === chosen;
    const who = `${line.answers.length > 1 ? `${index + 1} ` : ""}${each.title}${each.by ? ` (${each.by})` : ""}`;
    return element("div", { className: `option${isChosen ? " chosen" : ""}`, role: "radio", ariaChecked: String(isChosen), tabIndex: isChosen ? 0 : -1,
      onclick: () => choose(index) },
      element("div", { className: "who" }, who), answerView(each.answer), ...each.problems.map((text) => element("p", { className: "problem" }, text)));
  }));
}

function choose(index) {
  if (!line?.answers[index]) return;
  chosen = line.answers[index].name;
  drawAnswers();
}

async function decide(decision, more = {}) {
  const state = await call("/api/decide", { id: line.id, decision, ...more });
  byId("said").textContent = { accept: "Accepted.", correct: "Corrected.", reject: "Rejected." }[decision];
  tell(state);
  await show(`from=${place}`);
}

async function undo() {
  const found = await call("/api/undo", {});
  if (!found.id) {
    byId("said").textContent = "There is nothing to undo.";
    return;
  }
  byId("said").textContent = "Undone.";
  await show(`id=${encodeURIComponent(found.id)}`);
}

function openForm() {
  if (!line) return;
  editor = answerEditor(line.forms, line.answers.find((each) => each.name === chosen).answer);
  byId("editor").replaceChildren(editor.node);
  byId("form").hidden = false;
  byId("buttons").hidden = true;
  editor.focus();
}

function closeForm() {
  byId("form").hidden = true;
  byId("buttons").hidden = false;
  editor = null;
}

async function save() {
  const correction = editor?.read();
  if (!correction) return;
  try {
    await decide("correct", { correction });
  } catch (error) {
    if (!error.problems) throw error;
    editor.show(error.problems);
  }
}

const commands = {
  a: () => decide("accept", { answer: chosen }),
  c: openForm,
  r: () => decide("reject"),
  s: () => show(`from=${place + 1}`),
  u: undo,
  o: () => byId("order").focus(),
};

for (const [id, key] of [["accept", "a"], ["correct", "c"], ["reject", "r"], ["skip", "s"], ["undo", "u"], ["undo-last", "u"]])
  byId(id).addEventListener("click", () => guarded(commands[key]));
byId("cancel").addEventListener("click", closeForm);
byId("form").addEventListener("submit", (event) => { event.preventDefault(); guarded(save); });
byId("order").addEventListener("change", () => { byId("said").textContent = ""; guarded(() => show("from=0")); });
document.addEventListener("keydown", (event) => {
  const isOpen = !byId("form").hidden;
  if (event.repeat && event.key.length === 1 && isCommand(event)) return;
  if (isOpen && event.key === "Enter" && event.ctrlKey) { event.preventDefault(); byId("form").requestSubmit(); }
  else if (isOpen && event.key === "Escape") { closeForm(); byId("answers-title").focus(); }
  else if (!isOpen && event.key === "Escape") byId("answers-title").focus();
  else if (!isOpen && isCommand(event)) {
    if (/^[1-9]$/.test(event.key)) choose(Number(event.key) - 1);
    else if (commands[event.key] && (line || event.key === "u" || event.key === "o")) { event.preventDefault(); guarded(commands[event.key]); }
  }
});
guarded(() => show("from=0"));

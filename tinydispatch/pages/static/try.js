// The page of `serve --ui`: choose tools, ask, look at the answer, correct it.
import { answerEditor, answerView, byId, confidenceMark, element, isCommand, number, parseJson } from "./calls.js";

let key = "";
let offer = { tools: [], forms: [] };
let asked = null; // the last answer, with what it was asked
let editor = null;

class Refused extends Error {
  constructor(status, body) {
    super(body?.error?.message ?? `the server answered ${status}`);
    this.status = status;
    this.problems = body?.problems;
  }
}

async function call(path, body) {
  const headers = { ...(key && { authorization: `Bearer ${key}` }), ...(body && { "content-type": "application/json" }) };
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Refused(0, { error: { message: "The server cannot be reached; is it still running?" } });
  }
  const text = await response.text();
  let found = null;
  try {
    found = parseJson(text);
  } catch {
    // told by its status
  }
  if (!response.ok) throw new Refused(response.status, found);
  return found;
}

function say(id, message) {
  byId(id).textContent = message;
  byId(id).hidden = !message;
}

async function guarded(work) {
  say("trouble", "");
  try {
    await work();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status === 401) {
      byId("key-form").hidden = false;
      byId("key").focus();
      if (key) say("trouble", error.message);
    } else say("trouble", error.message);
  }
}

async function start() {
  const found = await call("/ui/tools");
  byId("key-form").hidden = true;
  byId("main").hidden = false;
  byId("model").textContent = `serving ${found.model}`;
  byId("right").disabled = byId("wrong").disabled = !found.can_correct;
  if (!found.can_correct) say("said", "Corrections are kept where the server was started with --dispatch-log DIR.");
  showTools(found, false);
  byId("request").focus();
}

function showTools(found, isOwn) {
  offer = found;
  byId("back").hidden = !isOwn;
  byId("tools-title").textContent = isOwn ? "Your tools on offer" : "Tools on offer";
  byId("tools").replaceChildren(...offer.forms.map((form, index) => {
    const tick = element("input", { type: "checkbox", checked: true, value: String(index) });
    return element("label", { title: form.description }, tick, ` ${form.name} `, element("span", { className: "dim" }, form.description));
  }));
}

async function useOwn() {
  say("schema-problem", "");
  let tools;
  try {
    tools = parseJson(byId("schema").value);
  } catch (error) {
    say("schema-problem", `This is no JSON: ${error.message}`);
    byId("schema").focus();
    return;
  }
  try {
    showTools(await call("/ui/tools", { tools }), true);
    byId("request").focus();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    say("schema-problem", error.message);
    byId("schema").focus();
  }
}

const ticked = () => [...byId("tools").querySelectorAll("input:checked")].map((tick) => Number(tick.value));

async function send() {
  if (!byId("request").value.trim()) return;
  const chosen = ticked();
  const messages = [{ role: "user", content: byId("request").value }];
  const tools = chosen.map((index) => offer.tools[index]);
  const date = byId("date").value;
  byId("send").disabled = true;
  try {
    const own = { explain: true, ...(date && { reference_date: date }) };
    const reply = await call("/v1/chat/completions", { messages, tools, tinydispatch: own });
    asked = { reply, messages, tools, forms: chosen.map((index) => offer.forms[index]), answer: answerOf(reply) };
    showAnswer();
  } finally {
    byId("send").disabled = false;
  }
}

function answerOf(reply) {
  const message = reply.choices[0].message;
  const calls = (message.tool_calls ?? []).map(({ function: made }) => ({ name: made.name, arguments: parseJson(made.arguments) }));
  return { calls, reply: message.content ?? "" };
}

function showAnswer() {
  const { reply, answer } = asked;
  const own = reply.tinydispatch;
  const refusal = reply.choices[0].message.refusal;
  // Confidences are of all calls that were written; one that breaks its schema is no longer among the calls.
  const confidences = own.confidences.length === answer.calls.length ? own.confidences : [];
  byId("answer").replaceChildren(answerView(answer, confidences), ...(refusal ? [element("p", { className: "problem" }, refusal)] : []));
  const figures = [
    ["confidence", confidenceMark(own.confidence)],
    ["calibrated", own.is_confident === null ? "no" : own.is_confident ? "yes: sure enough" : "yes: hand it up"],
    ["in all", time(own.total_ms)], ["waited", time(own.queue_ms)], ["prompt", time(own.prefill_ms)],
    ["reply", time(own.decode_ms)], ["of it grammar", time(own.grammar_ms)],
    ["prompt tokens", `${number(reply.usage.prompt_tokens)}, ${number(reply.usage.prompt_tokens_details.cached_tokens)} of them kept`],
    ["reply tokens", countOf(own.tokens)],
  ];
  byId("figures").replaceChildren(...figures.map(([name, value]) => element("span", {}, `${name} `, element("b", {}, value))));
  byId("tokens").replaceChildren(...own.tokens.map(tokenView));
  byId("correct").hidden = true;
  if (!byId("right").disabled) byId("said").textContent = "";
  byId("result").hidden = false;
  byId("answer-title").focus();
}

function time(ms) {
  const value = number(ms);
  return value < 1000 ? `${value < 10 ? value.toFixed(1) : Math.round(value)} ms` : `${(value / 1000).toFixed(2)} s`;
}

function countOf(tokens) {
  const forced = tokens.filter((token) => token.probability === null).length;
  return `${tokens.length}, ${forced} of them forced`;
}

function tokenView({ text, probability }) {
  if (probability === null) return element("span", { title: "forced" }, text);
  const value = number(probability);
  const kind = value >= 0.9 ? "sure" : value >= 0.6 ? "fair" : "unsure";
  const share = value < 0.995 ? element("sup", {}, String(Math.round(100 * value))) : undefined;
  return element("b", { className: kind, title: `chosen, ${(100 * value).toFixed(1)} %` }, text, share);
}

function beginCorrection() {
  if (byId("wrong").disabled || !asked) return;
  editor = answerEditor(asked.forms, asked.answer);
  byId("editor").replaceChildren(editor.node);
  byId("correct").hidden = false;
  editor.focus();
}

function endCorrection() {
  byId("correct").hidden = true;
  byId("answer-title").focus();
}

async function keep(correction) {
  const { reply, messages, tools, answer } = asked;
  const own = { answer: reply.id, messages, tools, calls: answer.calls, reply: answer.reply, correction,
    confidence: reply.tinydispatch.confidence, reference_date: reply.tinydispatch.reference_date };
  try {
    await call("/ui/corrections", own);
  } catch (error) {
    if (!(error instanceof Refused) || !error.problems || !editor) throw error;
    editor.show(error.problems);
    return;
  }
  endCorrection();
  byId("said").className = "done";
  byId("said").textContent = "Kept in the dispatch log; the next retraining learns from it.";
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = byId("key").value.trim();
  guarded(start);
});
byId("ask").addEventListener("submit", (event) => { event.preventDefault(); guarded(send); });
byId("use").addEventListener("click", () => guarded(useOwn));
byId("back").addEventListener("click", () => guarded(start));
byId("right").addEventListener("click", () => guarded(() => keep(asked.answer)));
byId("wrong").addEventListener("click", beginCorrection);
byId("cancel").addEventListener("click", endCorrection);
byId("correct").addEventListener("submit", (event) => {
  event.preventDefault();
  const found = editor.read();
  if (found) guarded(() => keep(found));
});
document.addEventListener("keydown", (event) => {
  const form = event.target.closest?.("form");
  if (event.key === "Enter" && event.ctrlKey && form) {
    event.preventDefault();
    form.requestSubmit();
  } else if (event.key === "Escape" && !byId("correct").hidden) endCorrection();
  else if (isCommand(event) && asked && event.key === "c") { event.preventDefault(); beginCorrection(); }
  else if (isCommand(event) && asked && event.key === "y" && !byId("right").disabled) guarded(() => keep(asked.answer));
});
guarded(start);

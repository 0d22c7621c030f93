// What both pages share: JSON whose numbers keep their digits, calls to read, and calls to fill in.

// 1.0 and 12345678901234567890 would not survive being a number here; such a number stays the text it was.
export function parseJson(text) {
  return JSON.parse(text, (_, value, context) =>
    typeof value === "number" && context?.source && JSON.rawJSON && String(value) !== context.source
      ? JSON.rawJSON(context.source)
      : value);
}

const isRaw = (value) => JSON.isRawJSON?.(value) === true;
const isNumber = (value) => typeof value === "number" || isRaw(value);
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value) && !isRaw(value);
export const number = (value) => (isRaw(value) ? Number(value.rawJSON) : value);
const NUMBER = /^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$/;
const asNumber = (text) => (JSON.rawJSON && String(Number(text)) !== text ? JSON.rawJSON(text) : Number(text));

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== undefined && child !== null));
  return made;
}

export const byId = (id) => document.getElementById(id);
export const percent = (value) => `${(100 * number(value)).toFixed(number(value) >= 0.9995 ? 0 : 1)} %`;
export const shown = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 1).replace(/\n\s*/g, " "));
const sureness = (value) => (number(value) >= 0.9 ? "sure" : number(value) >= 0.6 ? "fair" : "unsure");

export function confidenceMark(value) {
  if (value === undefined || value === null) return "";
  return element("span", { className: `confidence ${sureness(value)}` }, percent(value));
}

// Calls and words of an answer, to read; `confidences` are those of its calls, where known.
export function answerView(answer, confidences = []) {
  const box = element("div", { className: "answer" });
  (answer.calls ?? []).forEach((call, index) => {
    const sure = confidences[index];
    const rows = Object.entries(call?.arguments ?? {}).map(([name, value]) =>
      element("tr", {}, element("th", { scope: "row" }, name), element("td", { className: "value" }, shown(value)),
        element("td", {}, confidenceMark(sure?.arguments?.[name]))));
    const head = element("p", { className: "name" }, String(call?.name), " ", confidenceMark(sure?.tool));
    box.append(element("section", { className: "call" }, head,
      rows.length ? element("table", {}, element("tbody", {}, ...rows)) : element("p", { className: "dim" }, "no arguments")));
  });
  if (answer.reply) box.append(element("p", { className: "words" }, answer.reply));
  if (!box.childNodes.length) box.append(element("p", { className: "dim" }, "no call and no word"));
  return box;
}

let lastId = 0;
const nextId = () => `field-${++lastId}`;

// A field is {node, read(), focus(), say(message), child(key)}; read() is undefined for what is left out.
// `optional` fields have a tick; a field that may be null and must be given is null without it.
function makeField(spec, value, label, isRequired, complaints) {
  const fits = suits(spec, value);
  const kind = fits ? spec.kind : "json";
  const isNullable = Boolean(spec.is_nullable) && kind !== "json";
  const hasTick = !isRequired || isNullable;
  const isOn = value !== undefined && !(value === null && isNullable);
  const inner = (KINDS[kind] ?? KINDS.json)(spec, isOn ? value : undefined, label, complaints);
  const problem = element("p", { className: "problem", id: nextId(), role: "alert", hidden: true });
  const hint = [spec.description, spec.hint, isRequired ? undefined : "optional", fits ? undefined : "as JSON"]
    .filter(Boolean).join(" · ");
  const tick = hasTick && element("input", {
    type: "checkbox", checked: isOn, ariaLabel: `give ${label}`, title: isRequired ? "without the tick: null" : "without the tick: left out",
    onchange: () => { inner.node.classList.toggle("off", !tick.checked); if (tick.checked) inner.focus(); },
  });
  inner.node.classList.toggle("off", hasTick && !isOn);
  if (tick) inner.node.addEventListener("input", () => { tick.checked = true; inner.node.classList.remove("off"); });
  const name = inner.control
    ? element("label", { htmlFor: inner.control.id, className: "label" }, label)
    : element("span", { className: "label" }, label);
  const top = element("div", { className: "head" }, tick || undefined, name,
    hint ? element("span", { className: "dim" }, hint) : undefined);
  inner.control?.setAttribute("aria-describedby", problem.id);
  if (isRequired && inner.control) inner.control.setAttribute("aria-required", "true");
  const node = element("div", { className: `field kind-${kind}` }, top, inner.node, problem);
  return {
    node,
    read: () => (tick && !tick.checked ? (isRequired ? null : undefined) : inner.read()),
    focus: () => inner.focus(),
    child: (key) => inner.child?.(key),
    say(message) {
      problem.textContent = problem.hidden ? message : `${problem.textContent}; ${message}`;
      problem.hidden = false;
      inner.control?.setAttribute("aria-invalid", "true");
    },
    clear() {
      problem.hidden = true;
      inner.control?.removeAttribute("aria-invalid");
      inner.children?.().forEach((field) => field.clear());
    },
  };
}

function suits(spec, value) {
  if (value === undefined) return true;
  if (value === null) return Boolean(spec.is_nullable) || spec.kind === "json";
  const tests = {
    object: isObject, array: Array.isArray, string: (v) => typeof v === "string", boolean: (v) => typeof v === "boolean",
    integer: isNumber, number: isNumber, choice: (v) => spec.values.some((each) => same(each, v)), json: () => true,
  };
  return (tests[spec.kind] ?? tests.json)(value);
}

const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

function textControl(tag, properties, text) {
  const control = element(tag, { id: nextId(), value: text, autocomplete: "off", spellcheck: false, ...properties });
  return { node: control, control, focus: () => control.focus() };
}

const KINDS = {
  string(spec, value = "") {
    const isLine = /^(date|time|email|uri|uuid|local-date|currency|hostname|ip)/.test(spec.hint ?? "");
    const made = isLine && !value.includes("\n")
      ? textControl("input", { type: "text" }, value)
      : textControl("textarea", { rows: Math.min(8, 1 + value.split("\n").length - 1 + Math.floor(value.length / 80)) }, value);
    return { ...made, read: () => made.control.value };
  },
  integer: numberField,
  number: numberField,
  boolean(spec, value) {
    return choiceField([true, false], value);
  },
  choice(spec, value) {
    return choiceField(spec.values, value);
  },
  json(spec, value, label, complaints) {
    const made = textControl("textarea", { rows: 3, className: "code" }, value === undefined ? "" : JSON.stringify(value, null, 1));
    return { ...made, read() {
      try {
        return parseJson(made.control.value);
      } catch (error) {
        complaints.push([made.control.id, `this is no JSON: ${error.message}`]);
        return null;
      }
    } };
  },
  object(spec, value = {}, label, complaints) {
    const fields = new Map(spec.fields.map((each) =>
      [each.name, makeField(each.field, Object.hasOwn(value, each.name) ? value[each.name] : undefined, each.name, each.is_required, complaints)]));
    const rest = Object.fromEntries(Object.entries(value).filter(([name]) => !fields.has(name)));
    const others = spec.has_others || Object.keys(rest).length
      ? makeField({ kind: "json", description: "further arguments, as a JSON object" }, Object.keys(rest).length ? rest : undefined, "others", false, complaints)
      : null;
    const all = [...fields.values(), ...(others ? [others] : [])];
    return {
      node: element("div", { className: "inner" }, ...all.map((field) => field.node)),
      focus: () => all[0]?.focus(),
      child: (key) => fields.get(key) ?? others ?? undefined,
      children: () => all,
      read() {
        const found = {};
        const more = others?.read();
        if (isObject(more)) Object.assign(found, more);
        for (const [name, field] of fields) {
          const item = field.read();
          if (item !== undefined) found[name] = item;
        }
        return found;
      },
    };
  },
  array(spec, value = [], label, complaints) {
    const items = [];
    const list = element("div", { className: "inner" });
    const add = element("button", { type: "button", onclick: () => { append(undefined).focus(); changed(); } }, `Add to ${label}`);
    const changed = () => list.dispatchEvent(new Event("input", { bubbles: true }));
    function append(item) {
      const field = makeField(spec.item, item, `${label}, item`, true, complaints);
      const remove = element("button", { type: "button", className: "remove", onclick() {
        items.splice(items.indexOf(field), 1);
        row.remove();
        changed();
        add.focus();
      } }, "Remove");
      const row = element("div", { className: "item" }, field.node, remove);
      items.push(field);
      add.before(row);
      return field;
    }
    list.append(add);
    value.forEach(append);
    return { node: list, focus: () => (items[0] ? items[0].focus() : add.focus()), child: (key) => items[key], children: () => items,
      read: () => items.map((field) => field.read()) };
  },
};

function numberField(spec, value) {
  const text = value === undefined ? "" : isRaw(value) ? value.rawJSON : String(value);
  const made = textControl("input", { type: "text", inputMode: "decimal" }, text);
  // What is no number goes as a text, which the schema then refuses in its own words.
  return { ...made, read: () => (NUMBER.test(made.control.value.trim()) ? asNumber(made.control.value.trim()) : made.control.value) };
}

function choiceField(values, value) {
  const texts = values.map((each) => (typeof each === "string" ? each : JSON.stringify(each)));
  const found = value === undefined ? -1 : values.findIndex((each) => same(each, value));
  const control = element("select", { id: nextId() },
    element("option", { value: "" }, "choose…"), ...texts.map((text, index) => element("option", { value: String(index) }, text)));
  control.value = found < 0 ? "" : String(found);
  return { node: control, control, focus: () => control.focus(), read: () => (control.value === "" ? "" : values[Number(control.value)]) };
}

// Calls to fill in: {node, read(), show(problems), focus()}; `forms` are the tools on offer, `answer` what to begin with.
export function answerEditor(forms, answer) {
  const complaints = [];
  const calls = [];
  const list = element("div");
  const words = element("textarea", { id: nextId(), rows: 2, value: answer.reply ?? "" });
  const general = element("p", { className: "problem", role: "alert", hidden: true });

  function append(call) {
    const names = forms.map((form) => form.name);
    if (!names.includes(call.name)) names.unshift(call.name);
    const choose = element("select", { id: nextId(), onchange: () => draw(entry.field.read()) }, ...names.map((name) => element("option", { value: name }, name)));
    choose.value = call.name;
    const place = element("div");
    const problem = element("p", { className: "problem", role: "alert", hidden: true });
    const remove = element("button", { type: "button", className: "remove", onclick() {
      calls.splice(calls.indexOf(entry), 1);
      box.remove();
      more.focus();
    } }, "Remove this call");
    const box = element("fieldset", { className: "call" }, element("legend", {}, "Call"),
      element("div", { className: "head" }, element("label", { htmlFor: choose.id, className: "label" }, "tool"), choose, remove), problem, place);
    const entry = { choose, problem, field: null };
    function draw(value) {
      const form = forms.find((each) => each.name === choose.value);
      entry.field = makeField(form?.field ?? { kind: "json" }, value, "arguments", true, complaints);
      place.replaceChildren(entry.field.node);
    }
    draw(call.arguments ?? {});
    calls.push(entry);
    list.append(box);
    return entry;
  }

  const more = element("button", { type: "button", disabled: !forms.length, onclick: () => append({ name: forms[0].name, arguments: {} }).choose.focus() }, "Add a call");
  (answer.calls ?? []).forEach((call) => append(call));
  const node = element("div", { className: "editor" }, general, list, more,
    element("div", { className: "field" }, element("label", { htmlFor: words.id, className: "label" }, "reply in words"), words));

  function say(place, message) {
    place.textContent = place.hidden ? message : `${place.textContent}; ${message}`;
    place.hidden = false;
  }
  return {
    node,
    focus: () => (calls[0] ? calls[0].choose.focus() : words.focus()),
    // null where something is no JSON; it is said at its field.
    read() {
      complaints.length = 0;
      this.show([]);
      const found = { calls: calls.map((entry) => ({ name: entry.choose.value, arguments: entry.field.read() })), reply: words.value };
      for (const [id, message] of complaints) {
        const place = byId(id).closest(".field").querySelector(":scope > .problem");
        place.textContent = message;
        place.hidden = false;
        byId(id).focus();
      }
      return complaints.length ? null : found;
    },
    show(problems) {
      general.hidden = true;
      for (const entry of calls) {
        entry.problem.hidden = true;
        entry.field.clear();
      }
      let first = null;
      for (const { message, call, place } of problems) {
        const entry = call === null ? undefined : calls[number(call)];
        if (!entry) {
          say(general, message);
          continue;
        }
        let field = entry.field;
        for (const key of place) {
          const inner = field.child(typeof key === "string" ? key : number(key));
          if (!inner) break;
          field = inner;
        }
        if (field === entry.field) say(entry.problem, message);
        else field.say(message);
        first ??= field;
      }
      first?.focus();
    },
  };
}

// Whether a key was meant as a command and not typed into something.
export function isCommand(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return false;
  return !event.target.closest?.("input, textarea, select");
}

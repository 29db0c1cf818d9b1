// What the page says, in its reader's language: the catalogue of pfl_lm/translations.

let tag = "en"; // of the reader, such as es-MX: numbers are written as there
let texts = null;

// Choose the stated language, else the browser's first that the catalogue has, else the vocabulary's.
export async function openLanguage({ language, languages }, locale) {
  const wanted = language ? [language] : [...navigator.languages, locale.replaceAll("_", "-")];
  tag = wanted.find((one) => languages.includes(code(one))) ?? "en";
  const answer = await fetch(`languages/${code(tag)}.json`);
  if (!answer.ok) throw new Error(`${answer.url}: ${answer.status}`);
  texts = new Map(Object.entries(await answer.json()).flatMap(([group, own]) =>
    Object.entries(own).map(([key, text]) => [`${group}.${key}`, text])));
  document.documentElement.lang = tag;
  document.documentElement.dir = t("language.direction");
  document.title = t("page.title");
  for (const one of document.querySelectorAll("[data-t]")) one.textContent = t(one.dataset.t);
  for (const name of ["aria-label", "placeholder"])
    for (const one of document.querySelectorAll(`[data-t-${name}]`))
      one.setAttribute(name, t(one.getAttribute(`data-t-${name}`)));
}

export const isOpen = () => texts !== null;

// The text of a key with {{values}} filled in; with a `count`, in the form that the number takes.
// Numbers are written as the language does, texts as they are.
export function t(key, values = {}, type = "cardinal") {
  const isolated = texts.get("language.direction") === "rtl";
  const fill = (value) => {
    const text = typeof value === "number" ? number(value) : value;
    return isolated ? `\u2068${text}\u2069` : text; // a direction of its own
  };
  return form(key, values.count, type).replace(/\{\{(\w+)\}\}/g, (_, name) => fill(values[name]));
}

export function number(value, options = {}) {
  return new Intl.NumberFormat(tag, options).format(value);
}

// Several names as one text: "English and español".
export function listed(names) {
  return new Intl.ListFormat(tag).format(names);
}

function form(key, count, type) {
  if (count === undefined) return texts.get(key);
  const stem = type === "ordinal" ? `${key}_ordinal` : key;
  const chosen = new Intl.PluralRules(tag, { type }).select(count);
  return texts.get(`${stem}_${chosen}`) ?? texts.get(`${stem}_other`);
}

const code = (one) => one.split("-")[0].toLowerCase();

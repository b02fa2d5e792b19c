(() => {
  "use strict";
  const root = document.documentElement;
  const recall = (name) => { try { return localStorage.getItem(`luban.${name}`); } catch { return null; } };
  const remember = (name, value) => { try { localStorage.setItem(`luban.${name}`, value); } catch { /* private window */ } };
  const asked = location.hash.slice(1).split("+");
  const choose = (allowed, name, otherwise) =>
    allowed.find((value) => asked.includes(value)) ?? allowed.find((value) => value === recall(name)) ?? otherwise;

  let language = choose(["en", "zh"], "language", /^zh/i.test(navigator.language || "") ? "zh" : "en");
  const theme = choose(["light", "dark"], "theme", null);
  const speak = () => {
    root.lang = language === "zh" ? "zh-CN" : "en";
    for (const element of document.querySelectorAll("[data-label-en]")) {
      const text = element.getAttribute(`data-label-${language}`);
      if (element.tagName === "TITLE") element.textContent = text;
      else element.setAttribute("aria-label", text);
    }
  };
  root.classList.add("scripted");
  if (theme) root.dataset.theme = theme;
  speak();

  document.addEventListener("DOMContentLoaded", () => {
    speak();
    document.getElementById("language").addEventListener("click", () => {
      language = language === "zh" ? "en" : "zh";
      remember("language", language);
      speak();
    });
    document.getElementById("theme").addEventListener("click", () => {
      const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      root.dataset.theme = dark ? "light" : "dark";
      remember("theme", root.dataset.theme);
    });
    for (const button of document.querySelectorAll("button.copy")) {
      button.addEventListener("click", async () => {
        const code = button.parentElement.querySelector("code");
        try {
          await navigator.clipboard.writeText(code.innerText);
          button.classList.add("copied");
          setTimeout(() => button.classList.remove("copied"), 1500);
        } catch {
          getSelection().selectAllChildren(code);
        }
      });
    }
  });
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
})();

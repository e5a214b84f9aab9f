// One switch for all code of the page, remembered for the next one; and the section in view marked in the contents.
(() => {
  const button = document.getElementById("all-code");
  const cells = [...document.querySelectorAll("details.code")];
  const remembered = action => { try { return action(localStorage); } catch { return null; } };
  const show = open => {
    cells.forEach(cell => { cell.open = open || "shown" in cell.dataset; });
    button.textContent = open ? "Hide code" : "Show code";
    button.setAttribute("aria-pressed", open);
  };
  button.hidden = cells.length === 0;
  button.addEventListener("click", () => {
    const open = button.getAttribute("aria-pressed") !== "true";
    show(open);
    remembered(store => store.setItem("deqflow-code", open ? "shown" : ""));
  });
  show(remembered(store => store.getItem("deqflow-code")) === "shown");
  // A figure in space would keep the wheel for itself, and with it the reader.
  document.querySelectorAll(".plot").forEach(plot => {
    plot.addEventListener("wheel", event => event.stopImmediatePropagation(), { capture: true, passive: true });
  });
  const contents = document.querySelector(".contents details");
  if (contents && matchMedia("(max-width: 1179px)").matches) contents.open = false;
  const links = new Map([...document.querySelectorAll(".contents a")].map(a => [decodeURIComponent(a.hash.slice(1)), a]));
  const seen = new IntersectionObserver(entries => {
    const first = entries.find(entry => entry.isIntersecting);
    if (!first) return;
    links.forEach(link => link.removeAttribute("aria-current"));
    links.get(first.target.id)?.setAttribute("aria-current", "true");
  }, { rootMargin: "-60px 0px -70% 0px" });
  links.forEach((_, id) => { const heading = document.getElementById(id); if (heading) seen.observe(heading); });
})();

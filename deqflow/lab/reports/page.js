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
  if (matchMedia("(max-width: 600px)").matches) {
    // A narrow window would cut a figure in space at its sides: look at it from farther away.
    document.querySelectorAll(".plot").forEach(plot => {
      Object.entries(plot.layout).filter(([name]) => name.startsWith("scene")).forEach(([name, { camera }]) => {
        const { x, y, z } = camera?.eye ?? { x: 1.25, y: 1.25, z: 1.25 };
        Plotly.relayout(plot, { [`${name}.camera.eye`]: { x: 1.4 * x, y: 1.4 * y, z: 1.4 * z } });
      });
    });
  }
  document.querySelectorAll("main img").forEach(image => {
    image.decode().then(() => image.classList.toggle("wide", image.naturalWidth > 1000), () => {});
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

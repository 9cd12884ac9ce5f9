// The explorable network as a widget (anywidget): the page of explorer.js in a frame of its own. They tell each other
// which genes are selected; names are text in both directions.
function render({model, el}) {
  const frame = document.createElement("iframe");
  frame.title = "Explorable network";
  frame.setAttribute("sandbox", "allow-scripts allow-forms allow-downloads");
  frame.style.cssText = "width:100%;border:0;display:block";
  let hears = false;  // it is the frame that changes the model

  const theme = () => ({true: "light", false: "dark"})[document.body.dataset.jpThemeLight] ?? null;
  const tell = () => {
    if (hears) return;
    const message = {gpovae: "notebook", theme: theme(), selected: model.get("selected")};
    frame.contentWindow?.postMessage(message, "*");
  };
  const hear = event => {
    if (event.source !== frame.contentWindow || event.data?.gpovae !== "selected") return;
    hears = true;
    model.set("selected", event.data.selected);
    model.save_changes();
    hears = false;
  };
  const size = () => { frame.style.height = `${model.get("height")}px`; };

  const themes = new MutationObserver(tell);
  themes.observe(document.body, {attributeFilter: ["data-jp-theme-light"]});
  addEventListener("message", hear);
  frame.addEventListener("load", tell);  // also when JupyterLab has put it elsewhere
  model.on("change:selected", tell);
  model.on("change:height", size);
  size();
  frame.srcdoc = model.get("page");
  el.replaceChildren(frame);

  return () => {
    themes.disconnect();
    removeEventListener("message", hear);
    model.off("change:selected", tell);
    model.off("change:height", size);
  };
}
export default {render};

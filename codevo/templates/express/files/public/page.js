const answer = await fetch("/api/visits", { method: "POST" });
document.querySelector("#count").textContent = (await answer.json()).count;

let server;
new EventSource("/_live").onmessage = ({ data }) => {
  if (server && server !== data) location.reload();
  server = data;
};

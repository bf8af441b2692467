// A small API and the pages in public/. `node --watch` restarts it when a file changes.
import express from "express";

const app = express();
const visits = [];

app.use(express.json());
app.use(express.static("public"));

app.get("/api/visits", (request, response) => {
  response.json({ count: visits.length });
});

app.post("/api/visits", (request, response) => {
  visits.push(new Date());
  response.status(201).json({ count: visits.length });
});

// Keeps a connection open; when the server restarts after a change, the page reloads itself.
app.get("/_live", (request, response) => {
  response.set({ "Content-Type": "text/event-stream", "Cache-Control": "no-cache" });
  response.write(`data: ${process.pid}\n\n`);
});

const port = process.env.PORT || 3000;
app.listen(port, "127.0.0.1", () => console.log(`Listening on port ${port}`));

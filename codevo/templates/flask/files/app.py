"""A guest book: one page, one form. Press Run and look at the preview."""

import os
import time
from pathlib import Path

from flask import Flask, Response, redirect, render_template, request, url_for

app = Flask(__name__)
entries: list[str] = []


@app.get("/")
def index():
    return render_template("index.html", entries=entries)


@app.post("/")
def sign():
    name = request.form.get("name", "").strip()
    if name:
        entries.append(name[:80])
    return redirect(url_for("index"))


@app.get("/_live")
def live():
    """Keeps a connection open; when the server restarts after a change, the page reloads itself."""

    def beats():
        while True:
            yield f"data: {os.getpid()}\n\n"
            time.sleep(5)

    return Response(beats(), mimetype="text/event-stream")


if __name__ == "__main__":
    watched = [str(p) for folder in ("templates", "static") for p in Path(folder).rglob("*") if p.is_file()]
    app.run(host="127.0.0.1", port=int(os.environ.get("PORT", "5000")), debug=True, extra_files=watched)

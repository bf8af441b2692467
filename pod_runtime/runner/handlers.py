"""The runner's REST: Jupyter Server's shapes for terminals, kernels and sessions, and the hub's own calls."""

from __future__ import annotations

import time

from tornado.web import HTTPError

import pod_runtime
from pod_runtime.protocol.roles import Role
from pod_runtime.runner.context import RunnerHandler
from pod_runtime.runner.times import rfc3339


class Api(RunnerHandler):
    def get(self) -> None:
        self.write_json({"version": getattr(pod_runtime, "__version__", "1")})


class Status(RunnerHandler):
    def get(self) -> None:
        runner = self.runner
        models = runner.kernels.models()
        self.write_json(
            {
                "started": rfc3339(runner.started),
                "last_activity": rfc3339(runner.last_activity or runner.started),
                "kernels": len(models),
                "connections": sum(m["connections"] for m in models),
            }
        )


class Me(RunnerHandler):
    def get(self) -> None:
        claims = self.claims
        initials = "".join(word[0] for word in claims.name.split()[:2]).upper()
        self.write_json(
            {
                "identity": {
                    "username": claims.subject,
                    "name": claims.name,
                    "display_name": claims.name,
                    "initials": initials or None,
                    "avatar_url": None,
                    "color": None,
                },
                "permissions": {},
                "role": str(claims.role),
            }
        )


class TerminalList(RunnerHandler):
    def get(self) -> None:
        self.write_json(self.runner.terminals.models())

    def post(self) -> None:
        body = self.json_body()
        name, cwd = body.get("name"), body.get("cwd")
        for field, value in (("name", name), ("cwd", cwd)):
            if value is not None and not isinstance(value, str):
                raise HTTPError(400, reason=f"{field}: expected text")
        terminal = self.runner.terminals.create(name, cwd)
        self.write_json(self.runner.terminals.model(terminal))


class TerminalItem(RunnerHandler):
    def get(self, name: str) -> None:
        terminals = self.runner.terminals
        if name not in terminals.terminals:
            raise HTTPError(404, reason="There is no such terminal")
        self.write_json(terminals.model(terminals.terminals[name]))

    async def delete(self, name: str) -> None:
        if name not in self.runner.terminals.terminals:
            raise HTTPError(404, reason="There is no such terminal")
        await self.runner.terminals.remove(name)
        self.set_status(204)
        await self.finish()


class KernelSpecs(RunnerHandler):
    def get(self) -> None:
        self.write_json(self.runner.kernels.specs())


class KernelSpec(RunnerHandler):
    def get(self, name: str) -> None:
        specs = self.runner.kernels.specs()["kernelspecs"]
        if name not in specs:
            raise HTTPError(404, reason="There is no such kernelspec")
        self.write_json(specs[name])


class KernelList(RunnerHandler):
    def get(self) -> None:
        self.write_json(self.runner.kernels.models())

    def post(self) -> None:
        name = self.json_body().get("name")
        if name is not None and not isinstance(name, str):
            raise HTTPError(400, reason="name: expected text")
        kernel = self.runner.kernels.create(name)
        self.set_header("Location", f"/api/kernels/{kernel.id}")
        self.write_json(kernel.model(), 201)


class KernelItem(RunnerHandler):
    def get(self, kernel_id: str) -> None:
        self.write_json(self.runner.kernels.get(kernel_id).model())

    async def delete(self, kernel_id: str) -> None:
        await self.runner.kernels.remove(kernel_id)
        self.set_status(204)
        await self.finish()


class KernelAction(RunnerHandler):
    async def post(self, kernel_id: str, action: str) -> None:
        kernel = self.runner.kernels.get(kernel_id)
        if action == "interrupt":
            await kernel.interrupt()
            self.set_status(204)
            await self.finish()
        else:
            await kernel.restart()
            self.write_json(kernel.model())


class SessionList(RunnerHandler):
    def get(self) -> None:
        self.write_json(self.runner.kernels.sessions())

    def post(self) -> None:
        session = self.runner.kernels.create_session(self.json_body())
        self.set_header("Location", f"/api/sessions/{session.id}")
        self.write_json(session.model(), 201)


class SessionItem(RunnerHandler):
    def get(self, session_id: str) -> None:
        self.write_json(self.runner.kernels.session(session_id).model())

    def patch(self, session_id: str) -> None:
        self.write_json(self.runner.kernels.change_session(session_id, self.json_body()).model())

    async def delete(self, session_id: str) -> None:
        await self.runner.kernels.remove_session(session_id)
        self.set_status(204)
        await self.finish()


class PortList(RunnerHandler):
    async def get(self) -> None:
        await self.runner.ports.refresh()
        self.write_json(self.runner.ports.event())


class Health(RunnerHandler):
    reading = Role.HUB

    def get(self) -> None:
        self.write_json({"state": "ready", "percent": 100, "message": ""})


class Activity(RunnerHandler):
    reading = Role.HUB

    def get(self) -> None:
        last = self.runner.last_activity
        self.write_json(
            {
                "last_activity": None if last is None else rfc3339(min(last, time.time())),
                "busy": self.runner.kernels.busy,
            }
        )


class NotHere(RunnerHandler):
    def prepare(self) -> None:
        super().prepare()
        raise HTTPError(404)

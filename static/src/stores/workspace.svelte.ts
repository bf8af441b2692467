import { SvelteMap } from 'svelte/reactivity';
import { ApiError, words } from '../api/client';
import * as hub from '../api/hub';
import { Socket } from '../api/socket';
import type { Durability, FileChange, Port, Project, Role } from '../api/types';
import { WorkspaceApi, type KernelModel, type TerminalModel } from '../api/workspace';
import { isInside, moved } from '../lib/paths';
import { OpenDoc } from './docs.svelte';
import { FilesStore } from './files.svelte';
import { LayoutStore } from './layout.svelte';
import { PresenceStore } from './presence.svelte';
import { RunStore } from './run.svelte';
import { toasts } from './toasts.svelte';

export type Connection = { kind: 'connected' } | { kind: 'connecting' } | { kind: 'waiting'; until: number } | { kind: 'denied' };

/** One running workspace as this window sees it. Made when the server is ready, destroyed with the page. */
export class Workspace {
  readonly api: WorkspaceApi;
  readonly layout: LayoutStore;
  readonly files: FilesStore;
  readonly presence: PresenceStore;
  readonly run: RunStore;
  readonly docs = new SvelteMap<string, OpenDoc>();
  project = $state<Project>()!;
  terminals = $state<TerminalModel[]>([]);
  ports = $state<Port[]>([]);
  mainPort = $state<number | null>(null);
  durability = $state<Durability | null>(null);
  worker = $state<Connection>({ kind: 'connecting' });
  runner = $state<Connection>({ kind: 'connecting' });
  cursor = $state<{ line: number; column: number; selected: number } | null>(null);
  lost = $state(false);
  /** Grows when this person was let in again after a change of their right: what holds a socket is made anew. */
  admitted = $state(0);
  #refused = false;
  focusAsked = $state(0);
  /** Whether the search stands in place of the files, how often it was asked for, and what for. */
  searching = $state(false);
  searchAsked = $state(0);
  search = $state({ text: '', case: false, word: false, regex: false, include: '' });
  /** Where the editor of a file is to go once it is there. */
  target = $state.raw<{ path: string; line: number; column: number; length: number } | null>(null);
  focusGiven = 0;
  unsynced = $derived([...this.docs.values()].some((d) => d.unsynced));
  #events: Socket[] = [];
  #poll: ReturnType<typeof setTimeout> | undefined;
  #closed = false;

  constructor(
    project: Project,
    readonly me: string,
    /** Whether what was open is taken from this browser's memory. */
    remembered = true,
  ) {
    this.project = project;
    this.api = new WorkspaceApi(project.id);
    this.layout = new LayoutStore(project.id, remembered);
    this.files = new FilesStore(this.api);
    this.presence = new PresenceStore(this.api.ws, me, project.role);
    this.run = new RunStore(this.api, () => this.editor);
    this.#events = [
      new Socket(() => `${this.api.ws}/api/worker/events`, this.#listener('worker')),
      new Socket(() => `${this.api.ws}/api/events`, this.#listener('runner')),
    ];
    void this.files.load('').then(() => this.#first());
    void this.api.terminals().then(
      (all) => (this.terminals = all),
      () => undefined,
    );
  }

  get role(): Role {
    return this.project.role;
  }

  /** Strangers of a public project see what is there now, not what was. */
  get member(): boolean {
    return this.project.members !== undefined;
  }
  get editor(): boolean {
    return this.project.role !== 'viewer' && this.worker.kind !== 'denied';
  }

  doc(path: string): OpenDoc {
    let found = this.docs.get(path);
    if (!found) {
      found = new OpenDoc(this.api, path, this.me, () => this.#denied());
      this.docs.set(path, found);
    }
    return found;
  }

  /** `focus`: the cursor goes into the editor as well. */
  open(path: string, focus = false): void {
    this.layout.open(path);
    if (focus) this.focusAsked += 1;
    void this.files.reveal(path);
  }

  /** Open a file and select a place in it; lines and columns count from 1. */
  goTo(path: string, place: { line: number; column: number; length: number }, focus = false): void {
    this.target = { path, line: place.line, column: place.column, length: place.length };
    const doc = this.docs.get(path);
    if (doc?.history) doc.history = false;
    this.open(path, focus);
  }

  showSearch(): void {
    this.layout.files = true;
    this.layout.mobile = 'files';
    this.searching = true;
    this.searchAsked += 1;
  }

  /** Show the history of a file, of one that is gone as well. */
  showHistory(path: string): void {
    this.open(path);
    this.doc(path).history = true;
  }

  /** Back from the history of a file to the file. */
  closeHistory(path: string): void {
    const doc = this.docs.get(path);
    if (!doc?.history) return;
    doc.history = false;
    this.focusAsked += 1;
  }

  close(path: string): void {
    this.layout.close(path);
    this.docs.get(path)?.destroy();
    this.docs.delete(path);
  }

  async rename(from: string, to: string): Promise<void> {
    if (from === to) return;
    try {
      await this.api.rename(from, to);
      this.#moved(from, to);
      this.files.changed([{ path: from, kind: 'moved', to }]);
    } catch (e) {
      toasts.say(words(e), 'bad');
    }
  }

  async newTerminal(): Promise<void> {
    try {
      const made = await this.api.newTerminal();
      if (!this.terminals.some((t) => t.name === made.name)) this.terminals = [...this.terminals, made];
      this.layout.showPanel(made.name);
    } catch (e) {
      toasts.say(words(e), 'bad');
    }
  }

  async closeTerminal(name: string): Promise<void> {
    try {
      await this.api.closeTerminal(name);
      this.#setTerminals(this.terminals.filter((t) => t.name !== name));
    } catch (e) {
      toasts.say(words(e), 'bad');
    }
  }

  retry(): void {
    for (const s of this.#events) s.retry();
    for (const d of this.docs.values()) d.retry();
    this.presence.retry();
  }

  destroy(): void {
    this.#closed = true;
    clearTimeout(this.#poll);
    for (const s of this.#events) s.close();
    for (const d of this.docs.values()) d.destroy();
    this.run.destroy();
    this.presence.destroy();
  }

  #listener(which: 'worker' | 'runner'): ConstructorParameters<typeof Socket>[1] {
    let before = false;
    return {
      open: () => {
        this[which] = { kind: 'connected' };
        this.lost = false;
        if (before) {
          if (which === 'worker') void this.files.refresh();
          for (const d of this.docs.values()) d.retry();
          if (which === 'runner') void this.run.attach(false);
        }
        before = true;
      },
      message: (data) => this.#event(data),
      down: (event, wait) => {
        if (this.#closed) return;
        if (event.code === 4403) {
          this[which] = { kind: 'connecting' };
          this.#denied();
          return;
        }
        this[which] = wait === null ? { kind: 'connecting' } : { kind: 'waiting', until: Date.now() + wait };
        this.#check();
      },
    };
  }

  /** A socket was closed because the right behind it ended: which one is there now? */
  #denied(): void {
    if (this.#refused || this.#closed) return;
    this.#refused = true;
    this.#check(200);
  }

  /** A socket fell: has the workspace stopped, or only the way to it? Asked until all is well again. */
  #check(wait = 1500): void {
    clearTimeout(this.#poll);
    this.#poll = setTimeout(async () => {
      const well = this.worker.kind === 'connected' && this.runner.kind === 'connected';
      if (this.#closed || (well && !this.#refused)) return;
      try {
        const project = await hub.project(this.project.id);
        if (this.#closed) return;
        this.lost = false;
        this.#take(project);
        if (project.server.state === 'ready') this.retry();
      } catch (e) {
        if (e instanceof ApiError && [401, 403, 404].includes(e.status)) {
          this.#out();
          return;
        }
        this.lost = true;
      }
      this.#check();
    }, wait);
  }

  /** The project as the hub has it now; a new role takes effect without a reload. */
  #take(project: Project): void {
    const before = this.role;
    this.project = project;
    if (this.#refused) {
      this.#refused = false;
      this.admitted += 1;
      for (const d of this.docs.values()) d.readmit(this.editor);
    }
    if (project.role === before) return;
    this.presence.role(project.role);
    toasts.say(this.editor ? `You are ${project.role === 'owner' ? 'an owner' : 'an editor'} of this project now.` : 'You are a viewer of this project now: you see everything and change nothing.');
  }

  /** No longer ours to see: nothing is asked again. */
  #out(): void {
    this.worker = this.runner = { kind: 'denied' };
    for (const s of this.#events) s.close();
    for (const d of this.docs.values()) d.deny();
  }

  #event(data: unknown): void {
    if (typeof data !== 'string') return;
    let e: Record<string, unknown>;
    try {
      e = JSON.parse(data) as Record<string, unknown>;
    } catch {
      return;
    }
    if (e['type'] === 'ports' && Array.isArray(e['ports'])) {
      this.ports = (e['ports'] as Port[]).filter((p) => Number.isInteger(p?.port));
      this.mainPort = typeof e['main'] === 'number' ? e['main'] : null;
    } else if (e['type'] === 'kernels' && Array.isArray(e['kernels'])) this.run.kernels(e['kernels'] as KernelModel[]);
    else if (e['type'] === 'terminals' && Array.isArray(e['terminals'])) this.#setTerminals(e['terminals'] as TerminalModel[]);
    else if (e['type'] === 'files' && Array.isArray(e['changes'])) this.#changes(e['changes'] as FileChange[]);
    else if (e['type'] === 'durability') this.durability = e as unknown as Durability;
    else if (e['type'] === 'notice' && typeof e['message'] === 'string') {
      toasts.say(e['message'].slice(0, 300), e['level'] === 'info' ? 'info' : 'bad');
    }
  }

  #setTerminals(all: TerminalModel[]): void {
    this.terminals = all;
    const { panel } = this.layout;
    if (panel !== 'output' && !all.some((t) => t.name === panel)) this.layout.panel = all.at(-1)?.name ?? 'output';
  }

  #changes(changes: FileChange[]): void {
    this.files.changed(changes);
    for (const c of changes) {
      if (c.kind === 'moved' && c.to !== undefined) this.#moved(c.path, c.to);
      if (c.kind === 'modified' || c.kind === 'created') {
        const doc = this.docs.get(c.path);
        if (doc && (doc.kind === 'image' || doc.kind === 'gone')) void doc.load();
      }
    }
  }

  #moved(from: string, to: string): void {
    for (const path of [...this.docs.keys()]) {
      const now = moved(path, from, to);
      const doc = this.docs.get(path);
      if (now === null || !doc) continue;
      this.docs.delete(path);
      if (doc.moved(now)) {
        this.docs.get(now)?.destroy();
        this.docs.set(now, doc);
      } else doc.destroy();
    }
    for (const path of this.layout.tabs) if (isInside(path, from)) void this.files.reveal(moved(path, from, to) ?? path);
    this.layout.moved(from, to);
  }

  /** A new project opens with what one would look at first. */
  /** In a project that this person has not opened before: the file that one wants to see first. */
  async #first(): Promise<void> {
    if (!this.layout.fresh || this.layout.tabs.length) return;
    const files = (folder: string): string[] =>
      (this.files.folders.get(folder) ?? []).filter((e) => e.type !== 'directory').map((e) => e.path);
    const there = files('');
    // with Vite and its like the page at the root is a mere frame for what stands in src
    if (there.includes('package.json') && there.includes('index.html')) {
      await this.files.load('src').catch(() => undefined);
      there.unshift(...files('src').filter((path) => /^src\/app\./i.test(path)));
    }
    const wanted = [/^src\/app\./i, /^main\./, /^app\./, /^(index|server)\./, /^readme/i];
    const first = wanted.map((r) => there.find((path) => r.test(path))).find(Boolean);
    if (first && !this.layout.tabs.length) this.layout.open(first);
  }
}

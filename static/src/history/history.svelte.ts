import { ApiError, words } from '../api/client';
import type { Version, VersionPage } from '../api/types';
import { renewed, textOf } from '../lib/history';
import type { OpenDoc } from '../stores/docs.svelte';
import type { Workspace } from '../stores/workspace.svelte';
import { inTime } from './patience';

/** What is shown of one version: its text, or its bytes when they are no text or too many for the editor. */
export type Content =
  | { kind: 'loading' }
  | { kind: 'text'; text: string; blob: Blob }
  | { kind: 'bytes'; blob: Blob }
  | { kind: 'nothing'; why: string }
  | { kind: 'failed'; why: string };

const MAX_TEXT = 4 * 1024 * 1024;
const MAX_KEPT = 20;
/** While people type a commit comes every second or two. */
const PAUSE = 5000;
/** Bytes may take their time. */
const LONG_PATIENCE = 60_000;

/** The timeline of one file, and the version that is looked at. What it has loaded outlives its view. */
export class FileHistory {
  versions = $state.raw<Version[]>([]);
  more = $state(false);
  state = $state<'loading' | 'ready' | 'failed'>('loading');
  error = $state('');
  /** How it goes with the versions further back. */
  further = $state<'idle' | 'loading' | 'failed'>('idle');
  furtherError = $state('');
  seq = $state<number | null>(null);
  content = $state.raw<Content>({ kind: 'loading' });
  /** What the version is compared with: the file as it is now, or the version before it. */
  against = $state<'now' | 'before'>('now');
  before = $state.raw<Content>({ kind: 'loading' });
  #kept = new Map<number, Content>();
  #stop = new AbortController();
  #fetching: AbortController | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #asked = 0;

  constructor(
    readonly workspace: Workspace,
    readonly path: string,
  ) {}

  /** Not a `$derived`: that would end with the view that happened to make this. */
  get selected(): Version | null {
    return this.versions.find((v) => v.seq === this.seq) ?? null;
  }

  /** Somebody looks. */
  open(): void {
    this.#stop = new AbortController();
    this.further = 'idle';
    if (this.seq !== null) this.select(this.seq);
    void this.load();
  }

  /** Nobody looks any more. */
  rest(): void {
    clearTimeout(this.#timer);
    this.#stop.abort();
    this.#fetching?.abort();
  }

  async load(): Promise<void> {
    if (this.state === 'failed') this.state = 'loading';
    clearTimeout(this.#timer);
    this.#asked = Date.now();
    const stop = this.#stop.signal;
    try {
      const page = await this.#page(null);
      const known = this.versions.length > 0;
      this.versions = renewed(this.versions, page.versions);
      // what was shown further back stays, and so does whether there is more behind it
      if (!known || this.versions.length === page.versions.length) this.more = page.more;
      // a version that goes on keeps its place under another number
      if (this.seq !== null && !this.selected) {
        const now = this.versions.findLast((v) => v.seq > this.seq!);
        if (now) this.select(now.seq);
      } else if (this.seq !== null && [this.content, this.before].some((c) => c.kind === 'failed')) this.select(this.seq);
      this.state = 'ready';
      this.error = '';
    } catch (e) {
      if (stop.aborted) return;
      this.error = words(e);
      if (!this.versions.length) this.state = 'failed';
    }
  }

  /** Something was committed: is there a new version? Not asked all the time. */
  renew(): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => void this.load(), Math.max(0, this.#asked + PAUSE - Date.now()));
  }

  async #page(before: number | null): Promise<VersionPage> {
    const stop = this.#stop.signal;
    return inTime((signal) => this.workspace.api.history(this.path, before, signal), stop);
  }

  async older(): Promise<void> {
    const last = this.versions.at(-1);
    if (!last || this.further === 'loading') return;
    this.further = 'loading';
    const stop = this.#stop.signal;
    try {
      const page = await this.#page(last.seq);
      this.versions = [...this.versions, ...page.versions.filter((v) => v.seq < last.seq)];
      this.more = page.more;
      this.further = 'idle';
    } catch (e) {
      if (stop.aborted) return;
      this.furtherError = words(e);
      this.further = 'failed';
    }
  }

  select(seq: number | null, against = this.against): void {
    this.#fetching?.abort();
    this.seq = seq;
    this.against = against;
    const version = this.selected;
    if (!version) return;
    const stop = new AbortController();
    this.#fetching = stop;
    const show = (give: (content: Content) => void, of: Version | null): void => {
      const kept = of && this.#kept.get(of.seq);
      give(kept ?? (of ? { kind: 'loading' } : { kind: 'text', text: '', blob: new Blob() }));
      if (!of || kept) return;
      void this.#read(of, stop.signal).then((content) => {
        if (!stop.signal.aborted) give(content);
      });
    };
    show((content) => (this.content = content), version);
    if (against === 'before') {
      // a file that was made here is compared with nothing
      const before = this.versions[this.versions.indexOf(version) + 1];
      show((content) => (this.before = content), before?.kind === 'changed' ? before : null);
    }
  }

  async #read(version: Version, signal: AbortSignal): Promise<Content> {
    if (version.kind === 'deleted') return { kind: 'nothing', why: 'The file was deleted here.' };
    try {
      const blob = await inTime((s) => this.workspace.api.version(this.path, version.seq, s), signal, LONG_PATIENCE);
      const text = blob.size > MAX_TEXT ? null : textOf(new Uint8Array(await blob.arrayBuffer()));
      const content: Content = text === null ? { kind: 'bytes', blob } : { kind: 'text', text, blob };
      this.#keep(version.seq, content);
      return content;
    } catch (e) {
      const status = e instanceof ApiError ? e.status : null;
      if (status === 410) return { kind: 'nothing', why: 'This version is no longer kept.' };
      if (status === 404) return { kind: 'nothing', why: 'The file did not exist here.' };
      return { kind: status === 413 ? 'nothing' : 'failed', why: words(e) };
    }
  }

  #keep(seq: number, content: Content): void {
    this.#kept.set(seq, content);
    const [oldest] = this.#kept.keys();
    if (this.#kept.size > MAX_KEPT) this.#kept.delete(oldest!);
  }
}

const known = new WeakMap<OpenDoc, FileHistory>();

/** The history of an open file: the same one as long as the file is open. */
export function historyOf(workspace: Workspace, doc: OpenDoc): FileHistory {
  let found = known.get(doc);
  if (!found) {
    found = new FileHistory(workspace, doc.path);
    known.set(doc, found);
  }
  return found;
}

import { SvelteMap, SvelteSet } from 'svelte/reactivity';
import { words } from '../api/client';
import type { Entry, FileChange } from '../api/types';
import type { WorkspaceApi } from '../api/workspace';
import { byName, dirname, isInside, join } from '../lib/paths';
import { toasts } from './toasts.svelte';

export interface Row {
  entry: Entry;
  depth: number;
  open: boolean;
}

const SKIPPED = new Set(['node_modules', '.git', '__pycache__', '.venv', 'target', '.cache']);

/** The tree of files: folders are read when opened and again when the worker says that they changed. */
export class FilesStore {
  readonly folders = new SvelteMap<string, Entry[]>();
  readonly open = new SvelteSet<string>(['']);
  readonly loading = new SvelteSet<string>();
  failed = $state('');
  #stale = new Set<string>();
  #timer: ReturnType<typeof setTimeout> | undefined;
  rows = $derived.by(() => {
    const rows: Row[] = [];
    const walk = (folder: string, depth: number): void => {
      for (const entry of this.folders.get(folder) ?? []) {
        const open = entry.type === 'directory' && this.open.has(entry.path);
        rows.push({ entry, depth, open });
        if (open) walk(entry.path, depth + 1);
      }
    };
    walk('', 0);
    return rows;
  });

  constructor(readonly api: WorkspaceApi) {}

  async load(folder: string): Promise<void> {
    this.loading.add(folder);
    try {
      const found = await this.api.folder(folder);
      this.folders.set(folder, found.map((e) => ({ ...e, path: join(folder, e.name) })).sort(byName));
      if (folder === '') this.failed = '';
    } catch (e) {
      if (folder === '') this.failed = words(e);
      else {
        this.folders.delete(folder);
        this.open.delete(folder);
      }
    } finally {
      this.loading.delete(folder);
    }
  }

  async toggle(folder: string): Promise<void> {
    if (this.open.has(folder)) this.open.delete(folder);
    else {
      this.open.add(folder);
      if (!this.folders.has(folder)) await this.load(folder);
    }
  }

  /** Open the folders on the way to a path. */
  async reveal(path: string): Promise<void> {
    const parts = dirname(path).split('/').filter(Boolean);
    let folder = '';
    for (const part of parts) {
      folder = join(folder, part);
      this.open.add(folder);
      if (!this.folders.has(folder)) await this.load(folder);
    }
  }

  changed(changes: readonly FileChange[]): void {
    for (const change of changes) {
      if (change.kind === 'modified') continue;
      this.#stale.add(dirname(change.path));
      if (change.to !== undefined) this.#stale.add(dirname(change.to));
      if (change.kind === 'deleted' || change.kind === 'moved') {
        for (const folder of [...this.folders.keys()]) {
          if (folder && isInside(folder, change.path)) {
            this.folders.delete(folder);
            this.open.delete(folder);
          }
        }
      }
    }
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      for (const folder of this.#stale) if (this.folders.has(folder)) void this.load(folder);
      this.#stale.clear();
    }, 120);
  }

  /** Everything that is open, again: after a lost connection. */
  async refresh(): Promise<void> {
    await Promise.all([...this.folders.keys()].map((folder) => this.load(folder)));
  }

  /** All files for quick open: breadth first, at most `most`, without folders of dependencies. */
  async all(most = 5000, signal?: AbortSignal): Promise<string[]> {
    const found: string[] = [];
    let level = [''];
    let asked = 0;
    while (level.length && found.length < most && asked < 400) {
      const batch = level.splice(0, 8);
      asked += batch.length;
      const answers = await Promise.all(batch.map((f) => this.api.folder(f, signal).catch(() => [] as Entry[])));
      answers.forEach((entries, i) => {
        for (const e of entries) {
          const path = join(batch[i]!, e.name);
          if (e.type !== 'directory') found.push(path);
          else if (!SKIPPED.has(e.name)) level.push(path);
        }
      });
      if (signal?.aborted) break;
    }
    return found.slice(0, most);
  }

  async upload(folder: string, files: readonly { path: string; file: File }[]): Promise<void> {
    let done = 0;
    for (const { path, file } of files) {
      if (file.size > 50_000_000) {
        toasts.say(`“${file.name}” is larger than 50 MB. Fetch it from a terminal instead.`, 'bad');
        continue;
      }
      try {
        const parts = path.split('/').slice(0, -1);
        let parent = folder;
        for (const part of parts) {
          parent = join(parent, part);
          if (!(await this.api.stat(parent).catch(() => null))) await this.api.createFolder(parent);
        }
        await this.api.upload(join(folder, path), file);
        done += 1;
      } catch (e) {
        toasts.say(`“${file.name}”: ${words(e)}`, 'bad');
      }
    }
    if (done) toasts.say(done === 1 ? 'One file uploaded.' : `${done} files uploaded.`);
    await this.load(folder);
  }
}

import { words } from '../api/client';
import { adminPage } from '../api/hub';

/** A table whose pages, search and filter are the server's; further pages are appended. */
export class PagedList<T> {
  rows = $state<T[]>([]);
  cursor = $state<string | null>(null);
  total = $state<number | null>(null);
  loading = $state(true);
  failed = $state('');
  search = $state('');
  filter = $state<Record<string, string>>({});
  #stop = new AbortController();
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(readonly what: 'users' | 'servers') {}

  later(): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => void this.load(), 250);
  }

  async load(more = false): Promise<void> {
    this.#stop.abort();
    const stop = new AbortController();
    this.#stop = stop;
    this.loading = true;
    try {
      const query = { ...this.filter, search: this.search.trim(), limit: '50', cursor: more ? (this.cursor ?? '') : '' };
      const page = await adminPage<T>(this.what, query, stop.signal);
      this.rows = more ? [...this.rows, ...page.rows] : page.rows;
      this.cursor = page.cursor;
      this.total = page.total;
      this.failed = '';
    } catch (e) {
      if (!stop.signal.aborted) this.failed = words(e);
    } finally {
      if (this.#stop === stop) this.loading = false;
    }
  }
}

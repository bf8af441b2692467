import { WebsocketProvider } from 'y-websocket';
import { Doc } from 'yjs';
import { colorOf } from '../lib/colors';

export interface Person {
  client: number;
  name: string;
  role: string;
  file: string | null;
  terminal: string | null;
  me: boolean;
}

/** Who is in the project and where: the worker's project-wide awareness. */
export class PresenceStore {
  people = $state<Person[]>([]);
  readonly #doc = new Doc();
  readonly #provider: WebsocketProvider;

  constructor(ws: string, name: string, role: string) {
    this.#provider = new WebsocketProvider(ws, 'presence', this.#doc, { disableBc: true });
    const awareness = this.#provider.awareness;
    const color = colorOf(name);
    awareness.setLocalState({
      user: { name, color: color.strong, colorLight: color.light },
      role,
      file: null,
      terminal: null,
    });
    awareness.on('change', () => this.#read());
    // others hold what we last said as withdrawn: said again with a new clock, it counts
    this.#provider.on('status', ({ status }) => {
      if (status === 'connected') awareness.setLocalState({ ...awareness.getLocalState() });
    });
    this.#read();
  }

  /** One row a person, myself first; several windows of one person count once. */
  get persons(): Person[] {
    const seen = new Map<string, Person>();
    for (const p of this.people) {
      const old = seen.get(p.name);
      if (!old || (p.me && !old.me) || (!old.me && !old.file && p.file)) seen.set(p.name, p);
    }
    return [...seen.values()].sort((a, b) => Number(b.me) - Number(a.me) || a.name.localeCompare(b.name));
  }

  /** The others, by the file that each looks at. */
  byFile(): Map<string, Person[]> {
    const found = new Map<string, Person[]>();
    for (const p of this.persons) {
      if (p.me || p.file === null) continue;
      const there = found.get(p.file);
      if (there) there.push(p);
      else found.set(p.file, [p]);
    }
    return found;
  }

  role(role: string): void {
    this.#provider.awareness.setLocalStateField('role', role);
  }

  /** Try at once, also after a close that was final. */
  retry(): void {
    if (!this.#provider.wsconnected) this.#provider.connect();
  }

  at(file: string | null, terminal: string | null): void {
    const awareness = this.#provider.awareness;
    awareness.setLocalStateField('file', file);
    awareness.setLocalStateField('terminal', terminal);
  }

  /** Whether this window is the one that answers a shared terminal's queries: the lowest of the editors who see it. */
  answers(terminal: string): boolean {
    const mine = this.#doc.clientID;
    const seeing = this.people.filter((p) => p.role !== 'viewer' && (p.terminal === terminal || p.me)).map((p) => p.client);
    return Math.min(...seeing, mine) === mine;
  }

  destroy(): void {
    this.#provider.destroy();
    this.#doc.destroy();
  }

  #read(): void {
    const mine = this.#doc.clientID;
    const text = (v: unknown): string | null => (typeof v === 'string' ? v.slice(0, 4096) : null);
    this.people = [...this.#provider.awareness.getStates()].flatMap(([client, state]) => {
      const user = (state['user'] ?? {}) as Record<string, unknown>;
      const name = text(user['name'])?.slice(0, 64);
      if (!name) return [];
      return [
        {
          client,
          name,
          role: text(state['role']) ?? 'viewer',
          file: text(state['file']),
          terminal: text(state['terminal']),
          me: client === mine,
        },
      ];
    });
  }
}

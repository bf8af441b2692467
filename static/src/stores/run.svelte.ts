import { words } from '../api/client';
import { Socket } from '../api/socket';
import type { KernelModel, WorkspaceApi } from '../api/workspace';
import { AnsiBuffer, type Line } from '../lib/ansi';
import { executeRequest, message, parse, type Header, type Message } from '../lib/jupyter';
import { parseTime } from '../lib/time';
import { toasts } from './toasts.svelte';

export type RunState = 'idle' | 'busy' | 'stopping' | 'unknown';
/** Output that waits for the next frame of the screen; above it the oldest is left out. */
const MAX_WAITING = 400_000;

/** The project's program: one kernel named `program`, its state and its output. */
export class RunStore {
  state = $state<RunState>('unknown');
  since = $state<number | null>(null);
  exit = $state<string | null>(null);
  failed = $state(false);
  lines = $state.raw<Line[]>([]);
  dropped = $state(0);
  /** The program asks for a line: its prompt. */
  prompt = $state<string | null>(null);
  password = $state(false);
  everRan = $state(false);
  /** Grows with each run that begins: who listens opens the output. */
  runs = $state(0);
  #kernel: string | null = null;
  #socket: Socket | null = null;
  #session = crypto.randomUUID();
  #seen = false;
  #buffer = new AnsiBuffer();
  #waiting = '';
  #frame = 0;
  #request: Partial<Header> = {};
  #ask: Partial<Header> | null = null;
  #queue: string[] = [];
  #stopped = false;
  #closed = false;
  #connecting: Promise<void> | null = null;

  constructor(
    readonly api: WorkspaceApi,
    /** Whether this person may run the program now. */
    readonly allowed: () => boolean,
  ) {
    void this.attach(false);
  }

  get busy(): boolean {
    return this.state === 'busy' || this.state === 'stopping';
  }

  /** Find the program's kernel; `make` it when there is none. */
  attach(make: boolean): Promise<void> {
    this.#connecting ??= this.#attach(make).finally(() => {
      this.#connecting = null;
    });
    return this.#connecting;
  }

  /** The runner says which kernels there are. */
  kernels(all: readonly KernelModel[]): void {
    const program = all.find((k) => k.name === 'program');
    if (program && program.id !== this.#kernel) void this.attach(false);
    if (!program && this.#kernel) {
      this.#socket?.close();
      this.#socket = null;
      this.#kernel = null;
      if (this.busy) this.#ended(null);
      this.state = 'idle';
    }
  }

  async run(): Promise<void> {
    if (!this.allowed() || this.busy) return;
    try {
      await this.attach(true);
      const request = executeRequest(this.#session);
      this.#request = request.header;
      this.state = 'busy';
      this.since = Date.now();
      this.runs += 1;
      this.#begin();
      this.#send(request);
    } catch (e) {
      this.state = 'idle';
      toasts.say(words(e), 'bad');
    }
  }

  async stop(): Promise<void> {
    if (!this.allowed() || !this.#kernel) return;
    this.state = 'stopping';
    try {
      await this.api.interrupt(this.#kernel);
    } catch (e) {
      this.state = 'busy';
      toasts.say(words(e), 'bad');
    }
  }

  async restart(): Promise<void> {
    if (!this.allowed()) return;
    try {
      await this.attach(true);
      if (this.busy) {
        this.state = 'stopping';
        await this.api.restart(this.#kernel!);
        this.state = 'idle';
      }
      await this.run();
    } catch (e) {
      toasts.say(words(e), 'bad');
    }
  }

  input(value: string): void {
    this.#send(message('stdin', 'input_reply', { value, status: 'ok' }, this.#session, this.#ask ?? this.#request));
    this.#write(`${this.password ? '•'.repeat(value.length) : value}\n`);
    this.prompt = null;
    this.password = false;
    this.#ask = null;
  }

  clear(): void {
    this.#waiting = '';
    this.#buffer.clear();
    this.#show();
  }

  destroy(): void {
    this.#closed = true;
    this.#socket?.close();
    cancelAnimationFrame(this.#frame);
  }

  async #attach(make: boolean): Promise<void> {
    const all = await this.api.kernels().catch((e: unknown) => {
      if (make) throw e;
      return null;
    });
    if (all === null || this.#closed) return;
    let program = all.find((k) => k.name === 'program') ?? null;
    if (!program && make) program = await this.api.newKernel('program');
    if (!program) {
      if (this.state === 'unknown') this.state = 'idle';
      return;
    }
    if (program.id === this.#kernel && this.#socket) return;
    this.#socket?.close();
    this.#kernel = program.id;
    this.#seen = false;
    if (program.execution_state !== 'busy') this.state = 'idle';
    else if (this.state === 'unknown') {
      this.state = 'busy';
      this.since = parseTime(program.last_activity);
    }
    const id = program.id;
    this.#socket = new Socket(
      () =>
        `${this.api.ws}/api/kernels/${encodeURIComponent(id)}/channels?session_id=${this.#session}${this.#seen ? '' : '&replay=1'}`,
      {
        open: () => {
          if (!this.#seen) this.#begin(false);
          this.#seen = true;
          while (this.#queue.length && this.#socket?.send(this.#queue[0]!)) this.#queue.shift();
        },
        message: (data) => this.#take(parse(data)),
        down: (_event, wait) => {
          if (wait === null && this.#kernel === id) this.#socket = null;
        },
      },
    );
  }

  #send(frame: Message): void {
    const text = JSON.stringify(frame);
    if (!this.#socket?.send(text) && this.#queue.length < 32) this.#queue.push(text);
  }

  #begin(announce = true): void {
    this.clear();
    this.exit = null;
    this.failed = false;
    this.#stopped = false;
    this.prompt = null;
    if (announce) this.everRan = true;
  }

  #take(m: Message | null): void {
    if (!m) return;
    const c = m.content;
    switch (m.header.msg_type) {
      case 'status':
        if (c['execution_state'] === 'busy' && (m.parent_header.msg_type ?? 'execute_request') === 'execute_request') {
          if (!this.busy) {
            this.runs += 1;
            this.#begin();
          }
          if (this.state !== 'stopping') this.state = 'busy';
          this.since = parseTime(m.header.date) ?? this.since ?? Date.now();
          this.everRan = true;
          this.#request = m.parent_header;
        } else if (c['execution_state'] === 'idle' && (m.parent_header.msg_type ?? 'execute_request') === 'execute_request') {
          const code = m.metadata['exit_code'];
          if (typeof code === 'number') this.failed = code !== 0;
          this.#ended(code === 0 ? 'exit code 0' : null);
        } else if (c['execution_state'] === 'dead') this.#ended(null);
        break;
      case 'stream':
        this.everRan = true;
        // not red: most of what programs say on standard error is their log
        if (typeof c['text'] === 'string') this.#write(c['text']);
        break;
      case 'display_data':
      case 'execute_result': {
        const data = c['data'] as Record<string, unknown> | undefined;
        if (typeof data?.['text/plain'] === 'string') this.#write(`${data['text/plain']}\n`);
        break;
      }
      case 'error': {
        // a program's end says it all in one line; an exception of a kernel has its traceback
        const own = c['ename'] === 'ExitCode' || c['ename'] === 'NotRun';
        const trace = !own && Array.isArray(c['traceback']) ? c['traceback'].filter((t) => typeof t === 'string').join('\n') : '';
        this.failed = true;
        this.exit = String(c['evalue'] ?? '').slice(0, 200) || 'it failed';
        // what Stop sends: somebody's wish is no failure
        if (own && /\bSIGINT\b/.test(this.exit)) this.#stopped = true;
        if (trace) this.#write(`\n\x1b[31m${trace}\x1b[0m\n`);
        break;
      }
      case 'execute_reply': {
        if (m.parent_header.session && m.parent_header.session !== this.#session) break;
        this.#reply(c);
        break;
      }
      case 'input_request':
        this.prompt = typeof c['prompt'] === 'string' ? c['prompt'] : '';
        this.password = c['password'] === true;
        this.#ask = m.header;
        break;
    }
  }

  #reply(c: Record<string, unknown>): void {
    const code = c['exit_code'] ?? (c['user_expressions'] as Record<string, unknown> | undefined)?.['exit_code'];
    if (c['status'] === 'ok') this.#ended(typeof code === 'number' ? `exit code ${code}` : 'exit code 0');
    else {
      this.failed = true;
      const reason = typeof code === 'number' ? `exit code ${code}` : String(c['evalue'] ?? '').slice(0, 200);
      this.#ended(c['status'] === 'aborted' ? 'stopped' : reason || this.exit);
    }
  }

  #ended(exit: string | null): void {
    this.state = 'idle';
    this.since = null;
    this.prompt = null;
    this.#ask = null;
    if (exit) this.exit = exit;
    if (this.#stopped || (this.exit !== null && /\bSIGINT\b/.test(this.exit))) {
      this.exit = 'stopped';
      this.failed = false;
    }
  }

  #write(text: string): void {
    this.#waiting += text;
    if (this.#waiting.length > MAX_WAITING) {
      const left = this.#waiting.length - MAX_WAITING / 2;
      this.#waiting = `\x1b[0m\n… ${left.toLocaleString()} characters left out …\n${this.#waiting.slice(-MAX_WAITING / 2)}`;
    }
    if (!this.#frame) this.#frame = requestAnimationFrame(() => this.#show());
  }

  #show(): void {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    if (this.#waiting) this.#buffer.write(this.#waiting);
    this.#waiting = '';
    this.lines = [...this.#buffer.lines];
    this.dropped = this.#buffer.dropped;
  }
}

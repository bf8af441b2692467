import { Backoff } from '../lib/backoff';

export interface SocketEvents {
  open?: () => void;
  message?: (data: unknown) => void;
  /** `wait` is the time to the next attempt in ms; null when there will be none (close codes 4400–4499, `close()`). */
  down?: (event: CloseEvent, wait: number | null) => void;
}

/** A WebSocket that comes back: backoff, at once when the browser is online again, never after 4400–4499. */
export class Socket {
  #socket: WebSocket | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #backoff = new Backoff(400, 10_000);
  #closed = false;

  constructor(
    readonly address: () => string,
    readonly events: SocketEvents,
  ) {
    this.#connect();
  }

  get open(): boolean {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  send(data: string): boolean {
    if (!this.open) return false;
    this.#socket!.send(data);
    return true;
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
    removeEventListener('online', this.#now);
    this.#socket?.close();
  }

  /** Try at once instead of at the end of the wait; also after a close that was final. */
  retry(): void {
    this.#now();
  }

  #now = (): void => {
    if (this.#closed || this.#socket) return;
    clearTimeout(this.#timer);
    this.#connect();
  };

  #connect(): void {
    addEventListener('online', this.#now);
    const socket = new WebSocket(this.address());
    this.#socket = socket;
    let opened = 0;
    socket.onopen = () => {
      opened = Date.now();
      this.events.open?.();
    };
    socket.onmessage = (event) => this.events.message?.(event.data);
    socket.onclose = (event) => {
      this.#socket = null;
      // a server that accepts and hangs up at once must not be asked without a pause
      if (opened && Date.now() - opened > 3000) this.#backoff.reset();
      const final = this.#closed || (event.code >= 4400 && event.code < 4500);
      const wait = final ? null : this.#backoff.next();
      if (wait !== null) this.#timer = setTimeout(() => this.#connect(), wait);
      else removeEventListener('online', this.#now);
      this.events.down?.(event, wait);
    };
  }
}

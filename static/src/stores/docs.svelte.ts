import * as decoding from 'lib0/decoding';
import * as encoding from 'lib0/encoding';
import { messageYjsSyncStep1, messageYjsSyncStep2, writeSyncStep1 } from 'y-protocols/sync';
import { messageSync, WebsocketProvider } from 'y-websocket';
import { Doc, UndoManager, type Text } from 'yjs';
import { ApiError, words } from '../api/client';
import type { WorkspaceApi } from '../api/workspace';
import { colorOf } from '../lib/colors';
import { encodePath, extension } from '../lib/paths';

export type DocKind = 'loading' | 'text' | 'image' | 'binary' | 'huge' | 'gone' | 'denied' | 'error';

const IMAGES: Record<string, string> = {
  png: 'image/png',
  jpg: 'image/jpeg',
  jpeg: 'image/jpeg',
  gif: 'image/gif',
  webp: 'image/webp',
  avif: 'image/avif',
  bmp: 'image/bmp',
  ico: 'image/x-icon',
};
const BINARY = new Set(
  'zip gz zst xz bz2 7z tar pdf wasm so dylib dll exe o a class jar pyc pyo woff woff2 ttf otf mp3 mp4 webm mov ogg wav sqlite db bin'.split(' '),
);
/** Above this the browser's editor is no pleasure; the worker may refuse earlier. */
export const MAX_TEXT = 4 * 1024 * 1024;

/** y-websocket answers without looking whether its socket is still open; what is dropped here is asked for anew on the next one. */
class RoomSocket extends WebSocket {
  override send(data: Parameters<WebSocket['send']>[0]): void {
    if (this.readyState === WebSocket.OPEN) super.send(data);
  }
}

/** One live binding of a file: a document with its history and the socket that keeps it in step. */
export interface Live {
  doc: Doc;
  text: Text;
  undo: UndoManager;
  provider: WebsocketProvider;
}

/**
 * One open file. `live` is replaced as a whole when the server holds another history (close 4409): the text
 * that was here is kept in `stash` until the person has chosen. `acked` follows what the server is known to have:
 * after local edits a sync step 1 is sent, and the answer proves that everything before it arrived.
 */
export class OpenDoc {
  path = $state('');
  kind = $state<DocKind>('loading');
  reason = $state('');
  size = $state<number | null>(null);
  image = $state<string | null>(null);
  live = $state.raw<Live | null>(null);
  synced = $state(false);
  connected = $state(false);
  /** Text that was here when the server turned out to hold another history. */
  stash = $state<string | null>(null);
  /** Its history is shown in the place of its text. */
  history = $state(false);
  /** The last text seen, for 'restore as new' after a deletion. */
  lastText = '';
  /** The file went while something of that text was not sent: it is nowhere else. */
  unsent = $state(false);
  #version = $state(0);
  #acked = $state(0);
  #asked: number[] = [];
  #serverAsked = false;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #refusedAt = 0;
  #closed = false;

  constructor(
    readonly api: WorkspaceApi,
    path: string,
    readonly user: string,
    /** Called when the server says that this person may not (4403). */
    readonly ondenied: () => void = () => undefined,
  ) {
    this.path = path;
    void this.load();
  }

  /**
   * The file has another name now. Gives whether this goes on as the same document, with its socket, what is not
   * sent yet, undo and cursor; else what is at the new name is to be opened.
   */
  moved(to: string): boolean {
    if (this.unsent) {
      this.path = to;
      void this.load();
      return true;
    }
    const ext = extension(to);
    if (!this.live || !this.synced || this.kind !== 'text' || IMAGES[ext] || BINARY.has(ext)) return false;
    this.path = to;
    // where it connects the next time; the workspace's room goes along with the file
    this.live.provider.roomname = encodePath(to);
    return true;
  }

  async load(): Promise<void> {
    this.#drop();
    this.kind = 'loading';
    this.reason = '';
    // if another file stands there now, the person chooses
    if (this.unsent) this.stash = this.lastText;
    this.unsent = false;
    try {
      const entry = await this.api.stat(this.path);
      if (this.#closed) return;
      this.size = entry.size ?? null;
      const ext = extension(this.path);
      if (entry.type === 'directory') this.#fail('error', 'This is a folder now.');
      else if (IMAGES[ext] && (this.size ?? 0) < 20_000_000) {
        const blob = await this.api.blob(this.path);
        if (this.image) URL.revokeObjectURL(this.image);
        this.image = URL.createObjectURL(new Blob([blob], { type: IMAGES[ext]! }));
        this.kind = 'image';
      } else if (BINARY.has(ext) || IMAGES[ext]) this.kind = 'binary';
      else if ((this.size ?? 0) > MAX_TEXT) this.kind = 'huge';
      else this.connect();
    } catch (e) {
      if (e instanceof ApiError && e.status === 404) this.#fail('gone', '');
      else if (e instanceof ApiError && e.status === 403) this.#fail('denied', '');
      else {
        // the file may well be there: the socket tries again by itself
        this.connect();
        if (!(e instanceof ApiError)) this.reason = words(e);
      }
    }
  }

  connect(): void {
    if (this.#closed) return;
    this.#drop();
    const doc = new Doc();
    const text = doc.getText('source');
    const provider = new WebsocketProvider(this.api.ws + '/collab', encodePath(this.path), doc, {
      disableBc: true,
      WebSocketPolyfill: RoomSocket,
      maxBackoffTime: 8000,
    });
    const color = colorOf(this.user);
    provider.awareness.setLocalStateField('user', { name: this.user, color: color.strong, colorLight: color.light });
    const undo = new UndoManager(text, { captureTimeout: 400 });
    this.#version = 0;
    this.#acked = 0;
    this.#asked = [];

    const handler = provider.messageHandlers[messageSync]!;
    provider.messageHandlers[messageSync] = (enc, dec, self, emit, type) => {
      const kind = decoding.peekVarUint(dec);
      handler(enc, dec, self, emit, type);
      if (kind === messageYjsSyncStep1) {
        this.#serverAsked = true;
        this.#askSoon();
      }
      if (kind === messageYjsSyncStep2 && this.#asked.length) {
        this.#acked = Math.max(this.#acked, this.#asked.shift()!);
        if (this.unsynced) this.#askSoon();
      }
    };
    doc.on('update', (_update: Uint8Array, origin: unknown) => {
      if (origin === provider) return;
      this.#version += 1;
      this.#askSoon();
    });
    provider.on('sync', (state: boolean) => {
      if (!state) return;
      this.synced = true;
      this.kind = 'text';
      this.lastText = text.toString();
      if (this.stash !== null && this.stash === this.lastText) this.stash = null;
    });
    provider.on('status', ({ status }) => {
      this.connected = status === 'connected';
      // others hold our cursor as withdrawn: said again with a new clock, it counts
      if (this.connected) provider.awareness.setLocalState({ ...provider.awareness.getLocalState() });
      // nothing of what was asked on an old socket will be answered; y-websocket asks once by itself
      this.#asked = status === 'connected' ? [0] : [];
      this.#serverAsked = false;
    });
    provider.on('closed', ({ code, reason }: { code: number; reason: string }) => this.#refused(code, reason));
    this.live = { doc, text, undo, provider };
  }

  /** Not a `$derived`: that would end with the component that happened to make this, and a document outlives it. */
  get unsynced(): boolean {
    return this.#acked < this.#version || this.unsent;
  }

  /** Try at once instead of at the end of y-websocket's wait. */
  retry(): void {
    if (this.live && !this.connected && this.kind !== 'gone' && this.kind !== 'denied') this.live.provider.connect();
  }

  /** Let in again after 4403. Whoever may only read from now on keeps what was not sent as their own text. */
  readmit(editor: boolean): void {
    if (this.kind === 'denied') void this.load();
    else if (this.live && !editor && this.unsynced) {
      this.stash = this.live.text.toString();
      this.connect();
    } else this.retry();
  }

  deny(): void {
    if (this.live) this.lastText = this.live.text.toString();
    this.#fail('denied', '');
  }

  destroy(): void {
    this.#closed = true;
    this.#drop();
    if (this.image) URL.revokeObjectURL(this.image);
  }

  #askSoon(): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      const provider = this.live?.provider;
      if (!provider?.wsconnected || !provider.ws || !this.#serverAsked || !this.unsynced) return;
      const message = encoding.createEncoder();
      encoding.writeVarUint(message, messageSync);
      writeSyncStep1(message, provider.doc);
      this.#asked.push(this.#version);
      provider.ws.send(encoding.toUint8Array(message));
    }, 150);
  }

  #refused(code: number, reason: string): void {
    if (this.live && this.synced) this.lastText = this.live.text.toString();
    if (code === 4409) {
      if (this.synced) this.stash = this.lastText;
      this.#anew();
    } else if (code === 4404) {
      const unsent = this.unsynced;
      this.#fail('gone', reason);
      this.unsent = unsent;
    } else if (code === 4403) this.ondenied();
    else if (code === 4413) this.#fail('huge', reason);
    else if (code === 4415 || /binary|utf-?8|text/i.test(reason)) this.#fail('binary', reason);
    else this.#fail('error', reason || `The workspace refused to open it (${code}).`);
  }

  /** Begin with an empty history; a server that refuses that too is not asked without a pause. */
  #anew(): void {
    this.#drop();
    this.kind = 'loading';
    const wait = Date.now() - this.#refusedAt < 5000 ? 3000 : 0;
    this.#refusedAt = Date.now() + wait;
    this.#timer = setTimeout(() => this.connect(), wait);
  }

  #fail(kind: DocKind, reason: string): void {
    this.#drop();
    this.kind = kind;
    this.reason = reason;
  }

  #drop(): void {
    clearTimeout(this.#timer);
    const old = this.live;
    this.live = null;
    this.synced = false;
    this.connected = false;
    this.#serverAsked = false;
    this.#version = 0;
    this.#acked = 0;
    if (!old) return;
    old.undo.destroy();
    old.provider.destroy();
    old.doc.destroy();
  }
}

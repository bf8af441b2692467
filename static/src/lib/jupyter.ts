/** Jupyter's messages as JSON frames (jupyter_client 5.3 messaging; websocket frames with `channel`). */
export type Channel = 'shell' | 'control' | 'iopub' | 'stdin';

export interface Header {
  msg_id: string;
  msg_type: string;
  session: string;
  username: string;
  date: string;
  version: string;
}

export interface Message {
  channel: Channel;
  header: Header;
  parent_header: Partial<Header>;
  metadata: Record<string, unknown>;
  content: Record<string, unknown>;
  buffers: unknown[];
}

export function message(
  channel: Channel,
  type: string,
  content: Record<string, unknown>,
  session: string,
  parent: Partial<Header> = {},
): Message {
  return {
    channel,
    header: {
      msg_id: crypto.randomUUID(),
      msg_type: type,
      session,
      username: '',
      date: new Date().toISOString(),
      version: '5.3',
    },
    parent_header: parent,
    metadata: {},
    content,
    buffers: [],
  };
}

/** `code` is `''` for the project's own Run. */
export const executeRequest = (session: string, code = ''): Message =>
  message(
    'shell',
    'execute_request',
    { code, silent: false, store_history: false, user_expressions: {}, allow_stdin: true, stop_on_error: true },
    session,
  );

/** A frame from the kernel, or null for what is none: the runner may have been replaced by anything. */
export function parse(frame: unknown): Message | null {
  if (typeof frame !== 'string') return null;
  let data: unknown;
  try {
    data = JSON.parse(frame);
  } catch {
    return null;
  }
  if (typeof data !== 'object' || data === null) return null;
  const { channel, header, parent_header, content, metadata } = data as Record<string, unknown>;
  if (typeof header !== 'object' || header === null) return null;
  const head = header as Partial<Header>;
  if (typeof head.msg_type !== 'string' || typeof head.msg_id !== 'string') return null;
  const record = (value: unknown): Record<string, unknown> =>
    typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
  return {
    channel: (typeof channel === 'string' ? channel : 'iopub') as Channel,
    header: head as Header,
    parent_header: record(parent_header) as Partial<Header>,
    metadata: record(metadata),
    content: record(content),
    buffers: [],
  };
}

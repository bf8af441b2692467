/** One way to talk to the hub: JSON, the session's cookie, the XSRF header, problems as `ApiError`. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly field: string | null = null,
    readonly retryAfter: number | null = null,
  ) {
    super(message);
  }
}

export function cookie(name: string, all = document.cookie): string | null {
  for (const part of all.split('; ')) {
    if (part.startsWith(`${name}=`)) return part.slice(name.length + 1);
  }
  return null;
}

const WORDS: Record<number, string> = {
  0: 'Codevo cannot be reached. Check your connection.',
  401: 'Please log in.',
  403: 'You are not allowed to do that.',
  404: 'That does not exist, or you may not see it.',
  413: 'That is too large.',
  429: 'Too many attempts. Wait a moment and try again.',
  502: 'The workspace does not answer. Try again in a moment.',
  503: 'The workspace is not ready yet. Try again in a moment.',
};

export async function problem(response: Response): Promise<ApiError> {
  let detail = '';
  let field: string | null = null;
  try {
    if ((response.headers.get('Content-Type') ?? '').includes('json')) {
      const body: unknown = await response.json();
      if (typeof body === 'object' && body !== null) {
        const found = body as Record<string, unknown>;
        detail = String(found['detail'] ?? found['message'] ?? found['reason'] ?? '');
        field = typeof found['field'] === 'string' ? found['field'] : null;
      }
    }
  } catch {
    detail = '';
  }
  const after = Number(response.headers.get('Retry-After'));
  return new ApiError(
    response.status,
    detail.slice(0, 500) || WORDS[response.status] || `That did not work (${response.status}).`,
    field,
    after > 0 ? after : null,
  );
}

export async function send(
  method: string,
  path: string,
  body?: BodyInit | object,
  signal?: AbortSignal,
): Promise<Response> {
  const headers: Record<string, string> = { Accept: 'application/json' };
  let payload: BodyInit | null = null;
  if (body instanceof Blob || body instanceof ArrayBuffer || typeof body === 'string') payload = body;
  else if (body !== undefined) {
    headers['Content-Type'] = 'application/json';
    payload = JSON.stringify(body);
  }
  if (method !== 'GET') {
    const xsrf = cookie('_xsrf');
    if (xsrf) headers['X-XSRFToken'] = decodeURIComponent(xsrf);
  }
  let response: Response;
  try {
    response = await fetch(path, { method, headers, body: payload, credentials: 'same-origin', signal: signal ?? null });
  } catch (e) {
    if (e instanceof DOMException && e.name === 'AbortError') throw e;
    throw new ApiError(0, WORDS[0]!);
  }
  if (!response.ok) throw await problem(response);
  return response;
}

export async function call<T>(
  method: string,
  path: string,
  body?: BodyInit | object,
  signal?: AbortSignal,
): Promise<T> {
  const response = await send(method, path, body, signal);
  if (response.status === 204) return undefined as T;
  const text = await response.text();
  if (!text) return undefined as T;
  try {
    return JSON.parse(text) as T;
  } catch {
    throw new ApiError(502, WORDS[502]!);
  }
}

/** Lists come bare or as the only list of an object. */
export function list<T>(answer: unknown, ...keys: string[]): T[] {
  if (Array.isArray(answer)) return answer as T[];
  if (typeof answer === 'object' && answer !== null) {
    const found = answer as Record<string, unknown>;
    for (const k of [...keys, 'items']) if (Array.isArray(found[k])) return found[k] as T[];
  }
  return [];
}

export const words = (e: unknown): string =>
  e instanceof Error ? e.message : 'Something went wrong. Try again.';

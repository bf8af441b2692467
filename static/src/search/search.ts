import { send } from '../api/client';

export interface Match {
  line: number;
  column: number;
  length: number;
  text: string;
  start: number;
}
export interface Found {
  path: string;
  matches: Match[];
  truncated?: boolean;
}
export interface End {
  files: number;
  matches: number;
  truncated: boolean;
  skipped: number;
  stopped?: string;
}
export interface Query {
  text: string;
  case: boolean;
  word: boolean;
  regex: boolean;
  include: string;
}

/** The parts of one line of NDJSON that are whole, and what is left of the text. */
export function lines(text: string): [unknown[], string] {
  const parts = text.split('\n');
  const rest = parts.pop()!;
  return [parts.filter(Boolean).map((part) => JSON.parse(part) as unknown), rest];
}

/** Search, told file by file; the end says how it went. Throws what `send` throws. */
export async function search(base: string, query: Query, found: (some: Found[]) => void, signal: AbortSignal): Promise<End> {
  const flag = (on: boolean): string => (on ? '1' : '0');
  const asked = new URLSearchParams({ q: query.text, case: flag(query.case), word: flag(query.word), regex: flag(query.regex) });
  if (query.include.trim()) asked.set('include', query.include);
  const answer = await send('GET', `${base}/api/search?${asked}`, undefined, signal);
  const reader = answer.body!.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  let end: End | null = null;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const [whole, left] = lines(rest + value);
    rest = left;
    const some: Found[] = [];
    for (const line of whole) {
      if ((line as { done?: boolean }).done) end = line as End;
      else some.push(line as Found);
    }
    if (some.length) found(some);
  }
  return end ?? { files: 0, matches: 0, truncated: true, skipped: 0, stopped: 'The connection was interrupted' };
}

/** A shown line in three: before the match, the match, after it. Leading space goes. */
export function parts(match: Match): [string, string, string] {
  const before = match.text.slice(0, match.start).trimStart();
  return [
    before.length > 40 ? `…${before.slice(-36)}` : before,
    match.text.slice(match.start, match.start + match.length),
    match.text.slice(match.start + match.length),
  ];
}

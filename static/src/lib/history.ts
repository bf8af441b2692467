import type { Version } from '../api/types';

/** The text that a document of these bytes holds, as the worker decodes it; null when they are no text. */
export function textOf(bytes: Uint8Array): string | null {
  if (bytes.includes(0)) return null;
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return null;
  }
  // with the line ends of Windows throughout, the document has plain ones
  return /(?<!\r)\n|\r(?!\n)/.test(text) ? text : text.replaceAll('\r\n', '\n');
}

/** `ana`, `ana and ben`, `ana, ben and 2 others`. */
export function names(people: readonly string[]): string {
  if (people.length < 2) return people[0] ?? '';
  if (people.length < 4) return `${people.slice(0, -1).join(', ')} and ${people.at(-1)!}`;
  return `${people.slice(0, 2).join(', ')} and ${people.length - 2} others`;
}

/** `Today`, `Yesterday`, else the date. Milliseconds since 1970. */
export function day(then: number, now: number): string {
  const midnight = new Date(now).setHours(0, 0, 0, 0);
  if (then >= midnight) return 'Today';
  const before = new Date(midnight);
  before.setDate(before.getDate() - 1);
  if (then >= before.getTime()) return 'Yesterday';
  const date = new Date(then);
  return date.toLocaleDateString(undefined, {
    weekday: 'long',
    day: 'numeric',
    month: 'long',
    ...(date.getFullYear() === new Date(now).getFullYear() ? {} : { year: 'numeric' }),
  });
}

/** Versions under the day that they are of, in their order. */
export function byDay(versions: readonly Version[], now: number): { day: string; versions: Version[] }[] {
  const days: { day: string; versions: Version[] }[] = [];
  for (const version of versions) {
    const name = day(Date.parse(version.time), now);
    if (days.at(-1)?.day === name) days.at(-1)!.versions.push(version);
    else days.push({ day: name, versions: [version] });
  }
  return days;
}

/** The newest page put before what was known: what it covers replaces the old. */
export function renewed(known: readonly Version[], page: readonly Version[]): Version[] {
  const last = page.at(-1);
  return last ? [...page, ...known.filter((v) => v.seq < last.seq)] : [];
}

/** When it was, to end a sentence with: `at 14:05`, `on 3 November at 14:05`. Milliseconds since 1970. */
export function moment(then: number, now: number): string {
  const date = new Date(then);
  const time = date.toLocaleTimeString(undefined, { hour: '2-digit', minute: '2-digit' });
  if (date.toDateString() === new Date(now).toDateString()) return `at ${time}`;
  return `on ${date.toLocaleDateString(undefined, { day: 'numeric', month: 'long' })} at ${time}`;
}
